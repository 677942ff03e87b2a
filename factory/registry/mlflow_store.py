"""Model versions in MLflow: the few calls the registry needs, and nothing more.

    store = VersionStore("sqlite:////data/mlflow.db")
    store.create("helpdesk", source="/data/objects/adapters/...", run_id=None, tags={})   # 1

Aliases have no history in MLflow and vanish with their version; the registry keeps the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from factory.registry.errors import RegistryError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model version as MLflow holds it."""

    version: int
    source: str
    run_id: str | None
    created: datetime
    tags: Mapping[str, str]


class VersionStore:
    """Versions, tags and aliases under one MLflow URI."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def create(self, name: str, source: str, run_id: str | None, tags: Mapping[str, str]) -> int:
        """Add a version, and the registered model when it is the first; returns its number."""
        self._optional(
            lambda: self._client.create_registered_model(name), "RESOURCE_ALREADY_EXISTS"
        )
        made = self._call(
            lambda: self._client.create_model_version(
                name, source=source, run_id=run_id, tags=dict(tags)
            )
        )
        return int(made.version)

    def get(self, name: str, version: int) -> Entry | None:
        """One version; None when there is no such version or model."""
        found = self._optional(
            lambda: self._client.get_model_version(name, str(version)), "RESOURCE_DOES_NOT_EXIST"
        )
        return None if found is None else _entry(found)

    def entries(self, name: str) -> list[Entry]:
        """All versions, oldest first."""
        entries: list[Entry] = []
        token: str | None = None
        while True:
            page = self._call(
                lambda token=token: self._client.search_model_versions(  # type: ignore[misc]
                    f"name='{name}'", max_results=1000, page_token=token
                )
            )
            entries += map(_entry, page)
            token = page.token
            if not token:
                return sorted(entries, key=lambda entry: entry.version)

    def alias(self, name: str, alias: str) -> int | None:
        """The version an alias points to; None when it points to none."""
        model = self._optional(
            lambda: self._client.get_registered_model(name), "RESOURCE_DOES_NOT_EXIST"
        )
        found = None if model is None else model.aliases.get(alias)
        return None if found is None else int(found)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version."""
        self._call(lambda: self._client.set_registered_model_alias(name, alias, str(version)))

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, replacing those of the same name."""
        for key, value in tags.items():
            self._call(
                lambda key=key, value=value: self._client.set_model_version_tag(  # type: ignore[misc]
                    name, str(version), key, value
                )
            )

    def delete(self, name: str, version: int) -> None:
        """Remove a version for good."""
        self._call(lambda: self._client.delete_model_version(name, str(version)))

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if self._uri.startswith("sqlite:///"):
            Path(self._uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _call(self, action: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException

        try:
            return action()
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise RegistryError(
                f"MLflow at '{self._uri}' refused: {reason}. Check `mlflow` in factory.yaml."
            ) from error

    def _optional(self, action: Callable[[], T], code: str) -> T | None:
        """The result of `action`, or None when MLflow answers with that error code."""
        from mlflow.exceptions import MlflowException

        def guarded() -> T | None:
            try:
                return action()
            except MlflowException as error:
                if error.error_code == code:
                    return None
                raise

        return self._call(guarded)


def _entry(found: Any) -> Entry:
    return Entry(
        version=int(found.version),
        source=found.source,
        run_id=found.run_id,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        tags=dict(found.tags),
    )

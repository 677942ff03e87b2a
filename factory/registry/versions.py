"""The registry: versions with lineage, a champion that moves only through the gate.

    registry = Registry(settings, ledger)
    version = registry.register("helpdesk", adapter, run_id, lineage, evaluation, base_evaluation)
    registry.promote("helpdesk", version).reasons
    registry.champion("helpdesk").path
    registry.rollback("helpdesk")

Versions and the alias `champion` are MLflow's, the promotion log is the ledger's. The log is
written first and the alias moved after it, so a crash between the two is mended by the next
call; an alias that anything else has moved is reported. Calls on one host wait for each other.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from factory.catalog.errors import CatalogError
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.compare import Comparison, compare
from factory.ledger import promotions
from factory.ledger.records import Action, Promotion
from factory.ledger.store import Ledger
from factory.registry.errors import RegistryError
from factory.registry.evidence import Evidence
from factory.registry.gate import Check, GateDecision, Metrics, decide
from factory.registry.lineage import Lineage
from factory.registry.mlflow_store import Entry, VersionStore
from factory.registry.succession import head, succession

CHAMPION = "champion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A registered adapter, or whole weights."""

    name: str
    version: int
    path: Path
    """Its folder: PEFT's layout for an adapter, a model's for whole weights."""
    adapter_hash: str
    """Content hash of that folder."""
    lineage: Lineage
    metrics: Metrics
    """On the suite it was judged on last."""
    run_id: str | None
    created: datetime
    champion: bool
    whole: bool = False
    """Whole weights (a student, a quantized or fully tuned model) rather than an adapter."""


WEIGHTS = "weights"
"""The kind of whole weights in the object store; adapters are of kind `adapters`."""


class Registry:
    """Versions of all models under one home."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._ledger, self._clock = settings, ledger, clock
        self._objects = ObjectStore(settings.objects)
        self._store = VersionStore(settings.mlflow_uri)
        self._evidence = Evidence(settings, self._objects)

    def register(
        self,
        name: str,
        adapter: Object,
        run_id: str | None,
        lineage: Lineage,
        evaluation: Object,
        base_evaluation: Object,
    ) -> int:
        """Register an adapter with its results and those of its base; returns the version.

        An object of kind `weights` is registered as whole weights; `lineage.base_model` then says
        which model they were made from. The same adapter with the same lineage is the same
        version, whatever suite judges it; the newest results count. Raises `RegistryError` when
        the results are not of this adapter and its base.
        """
        whole = adapter.kind == WEIGHTS
        tags = self._evidence.tags(adapter.hash, lineage, evaluation, base_evaluation, whole=whole)
        with self._lock():
            for entry in self._store.entries(name):
                if (entry.tags.get("adapter_hash"), entry.tags.get("lineage_fingerprint")) == (
                    adapter.hash,
                    lineage.fingerprint,
                ):
                    self._store.set_tags(name, entry.version, tags)
                    return entry.version
            kept = self._objects.put("lineage", name, lambda folder: _write(folder, lineage))
            tags |= {
                "artifact_kind": adapter.kind,
                "adapter_name": adapter.name,
                "adapter_hash": adapter.hash,
                "lineage": kept.hash,
                "lineage_fingerprint": lineage.fingerprint,
                "data_hash": lineage.data_hash,
                "base_model": lineage.base_model,
                "base_hash": lineage.base_hash,
                "base_revision": lineage.base_revision,
                "code_commit": lineage.code.commit,
                "code_dirty": str(lineage.code.dirty).lower(),
            }
            return self._store.create(name, str(adapter.path), run_id, tags)

    def add_evaluation(
        self, name: str, version: int, evaluation: Object, base_evaluation: Object
    ) -> None:
        """Add results of a registered version on another suite, with those of its base."""
        entry = self._entry(name, version)
        tags = self._evidence.tags(
            entry.tags["adapter_hash"],
            self._lineage(name, entry),
            evaluation,
            base_evaluation,
            whole=_whole(entry),
        )
        self._store.set_tags(name, version, tags)

    def promote(self, name: str, version: int, *, actor: str | None = None) -> GateDecision:
        """Make a version champion if the gate passes it; the decision is logged either way.

        Promoting the champion again only puts its alias right. Raises `RegistryError` for an
        unknown version, a missing gate, or an adapter or results that are gone or changed.
        """
        with self._lock():
            entry = self._entry(name, version)
            line = succession(self.history(name))
            champion = line[-1] if line else None
            if champion == version:
                self._store.set_alias(name, CHAMPION, version)
                return GateDecision((Check(True, f"version {version} is the champion already"),))
            self._check_adapter(name, entry)
            decision, metrics = self._decide(name, entry, champion)
            self._log(
                name,
                "promote" if decision.passed else "refuse",
                version,
                previous=champion,
                actor=actor,
                reasons=decision.reasons,
                metrics=metrics,
            )
            if decision.passed:
                self._store.set_alias(name, CHAMPION, version)
            return decision

    def rollback(self, name: str, *, actor: str | None = None) -> int:
        """Return to the champion before this one; returns its version. Raises `RegistryError`."""
        with self._lock():
            line = succession(self.history(name))
            if len(line) < 2:
                state = f"version {line[0]} is its first champion" if line else "it has no champion"
                raise RegistryError(f"nothing to roll '{name}' back to: {state}")
            current, target = line[-1], line[-2]
            entry = self._entry(name, target)
            self._check_adapter(name, entry)
            self._log(
                name,
                "rollback",
                target,
                previous=current,
                actor=actor,
                reasons=(f"rolled back from version {current} to version {target}",),
                metrics=_metrics(entry),
            )
            self._store.set_alias(name, CHAMPION, target)
            return target

    def champion(self, name: str) -> Version | None:
        """The version users get; None before the first promotion.

        Raises `RegistryError` when the alias is not where the promotion log left it, or when the
        champion's adapter is gone.
        """
        with self._lock():
            last = head(self.history(name))
            alias = self._store.alias(name, CHAMPION)
            if last is None or last.version is None:
                if alias is None:
                    return None
                raise RegistryError(
                    f"@{CHAMPION} of '{name}' points to version {alias} but nothing was ever "
                    "promoted: the alias was set outside the registry. "
                    f"Run `factory registry promote {name} {alias}`."
                )
            if (entry := self._store.get(name, last.version)) is None:
                raise RegistryError(
                    f"version {last.version} of '{name}' is champion in the promotion log but was "
                    f"deleted from MLflow; run `factory registry rollback {name}`"
                )
            if alias != last.version:
                if alias != last.previous:
                    raise RegistryError(
                        f"@{CHAMPION} of '{name}' points to version {alias} but the promotion log "
                        f"says {last.version}: the alias was moved outside the registry. "
                        f"Run `factory registry promote {name} {last.version}` to put it back."
                    )
                self._store.set_alias(name, CHAMPION, last.version)
            self._check_adapter(name, entry)
            return self._version(name, entry, champion=last.version)

    def get(self, name: str, version: int) -> Version:
        """One version. Raises `RegistryError`."""
        line = succession(self.history(name))
        return self._version(name, self._entry(name, version), line[-1] if line else None)

    def list(self, name: str) -> Sequence[Version]:
        """All versions, oldest first."""
        line = succession(self.history(name))
        champion = line[-1] if line else None
        return [self._version(name, entry, champion) for entry in self._store.entries(name)]

    def history(self, name: str) -> Sequence[Promotion]:
        """The promotion log of a model, oldest first."""
        return promotions.history(self._ledger, name)

    def delete(self, name: str, version: int) -> None:
        """Delete a version that no rollback can need. Raises `RegistryError`."""
        with self._lock():
            self._entry(name, version)
            if version in succession(self.history(name)):
                raise RegistryError(
                    f"version {version} of '{name}' is champion or a rollback may return to it; "
                    "it cannot be deleted"
                )
            self._store.delete(name, version)

    def _lock(self) -> FileLock:
        self._settings.home.mkdir(parents=True, exist_ok=True)
        return FileLock(self._settings.home / "registry.lock")

    def _entry(self, name: str, version: int) -> Entry:
        entry = self._store.get(name, version)
        if entry is None:
            known = [found.version for found in self._store.entries(name)]
            raise RegistryError(
                f"'{name}' has no version {version}; "
                + (f"known versions: {known}" if known else "register one by evaluating an adapter")
            )
        if "adapter_hash" not in entry.tags:
            raise RegistryError(
                f"version {version} of '{name}' was not made by the registry; evaluate its adapter "
                "with `python -m pipelines.evaluate` to register it"
            )
        return entry

    def _log(
        self,
        name: str,
        action: Action,
        version: int,
        *,
        previous: int | None,
        actor: str | None,
        reasons: Sequence[str],
        metrics: Metrics,
    ) -> None:
        promotions.append(
            self._ledger,
            Promotion(
                created_at=self._clock(),
                name=name,
                action=action,
                version=version,
                previous=previous,
                actor=actor or _user(),
                reasons=reasons,
                metrics=metrics.as_dict(),
            ),
        )

    def _decide(
        self, name: str, entry: Entry, champion: int | None
    ) -> tuple[GateDecision, Metrics]:
        gate = self._settings.gates.get(name)
        if gate is None:
            raise RegistryError(f"no gate for '{name}'; add gates.{name} to factory.yaml")
        suite = entry.tags["suite_hash"]
        mine = self._evidence.of(entry, suite)
        base = self._evidence.of(entry, suite, base=True)
        if mine is None or base is None:
            raise RegistryError(
                f"version {entry.version} of '{name}' was not evaluated; "
                "run `python -m pipelines.evaluate` on its adapter first"
            )
        against: Comparison | None = None
        obstacles: list[str] = []
        if champion is not None and gate.accuracy.no_worse_than_champion is not None:
            best = self._evidence.of(self._entry(name, champion), suite)
            if best is None:
                obstacles.append(
                    f"champion version {champion} was not judged on this suite; evaluate the "
                    "candidate again with `python -m pipelines.evaluate`, which judges both"
                )
            else:
                against = compare(best, mine)
        metrics = self._evidence.metrics(mine, entry.tags["base_model"])
        decision = decide(
            gate, metrics, base=compare(base, mine), champion=against, obstacles=obstacles
        )
        return decision, metrics

    def weights(self, name: str, version: int) -> Object:
        """The stored folder of a version, an adapter's or a model's. Raises `RegistryError`."""
        entry = self._entry(name, version)
        self._check_adapter(name, entry)
        return self._adapter(entry)

    def _adapter(self, entry: Entry) -> Object:
        kind = entry.tags.get("artifact_kind", "adapters")
        return self._objects.get(kind, entry.tags["adapter_name"], entry.tags["adapter_hash"])

    def _check_adapter(self, name: str, entry: Entry) -> None:
        try:
            self._objects.verify(self._adapter(entry))
        except CatalogError as error:
            raise RegistryError(
                f"the adapter of '{name}' version {entry.version} cannot be used: {error}"
            ) from error

    def _lineage(self, name: str, entry: Entry) -> Lineage:
        try:
            item = self._objects.get("lineage", name, entry.tags["lineage"])
            return Lineage.from_json((item.path / "lineage.json").read_text("utf-8"))
        except (CatalogError, OSError, ValueError) as error:
            raise RegistryError(
                f"the lineage of '{name}' version {entry.version} cannot be read: {error}"
            ) from error

    def _version(self, name: str, entry: Entry, champion: int | None) -> Version:
        try:
            path = self._adapter(entry).path
        except CatalogError:
            path = Path(entry.source)
        return Version(
            name=name,
            version=entry.version,
            path=path,
            adapter_hash=entry.tags["adapter_hash"],
            lineage=self._lineage(name, entry),
            metrics=_metrics(entry),
            run_id=entry.run_id,
            created=entry.created,
            champion=entry.version == champion,
            whole=_whole(entry),
        )


def _whole(entry: Entry) -> bool:
    return entry.tags.get("artifact_kind") == WEIGHTS


def _metrics(entry: Entry) -> Metrics:
    return Metrics.from_dict(json.loads(entry.tags["metrics"]))


def _write(folder: Path, lineage: Lineage) -> None:
    (folder / "lineage.json").write_text(lineage.as_json(), "utf-8")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())

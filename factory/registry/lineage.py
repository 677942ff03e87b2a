"""Lineage: everything a version was made of, so that it can be made again.

lineage = Lineage(base_model="smollm2-135m", base_hash=..., data_hash=..., suite_hash=...,
                  config=..., seeds={"train": 7}, code=code_state(os.environ),
                  versions=library_versions())
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import TypeAdapter

from factory.catalog.code import UNKNOWN, Code

LIBRARIES = ("torch", "transformers", "peft", "ray", "mlflow", "numpy", "budget-ai-factory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What a version was made of."""

    base_model: str
    """Catalog name of the base."""
    base_hash: str
    """Content hash of the base's folder."""
    base_revision: str = UNKNOWN
    """Revision of the base at its source."""
    data_hash: str = UNKNOWN
    """Hash of the training data."""
    suite_hash: str
    """Hash of the suite it was first judged on."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of the training run."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Seeds by purpose."""
    synthetic: dict[str, int] = field(default_factory=dict)
    """Training examples that a model wrote or answered, by split; empty without any."""
    code: Code
    """The code that made it."""
    versions: dict[str, str]
    """Python and library versions."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over all that made the version; how it was judged is no part of that."""
        made_of = {key: value for key, value in asdict(self).items() if key != "suite_hash"}
        if not self.synthetic:
            del made_of["synthetic"]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def as_json(self) -> str:
        """Indented JSON, as kept in `lineage.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Lineage:
        """The inverse of `as_json`. Raises `ValueError`."""
        return TypeAdapter(cls).validate_json(text)


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of those of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""Evidence: the saved results that a version's promotion rests on, tied to it by tags.

evidence = Evidence(settings, objects)
tags = evidence.tags(adapter.hash, lineage, evaluation, base_evaluation)
evidence.of(entry, suite_hash)              # Results, or None when not judged on that suite
"""

from __future__ import annotations

import json

from factory.catalog.errors import CatalogError
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.results import KIND, EvaluationError, Results, load
from factory.registry.errors import RegistryError
from factory.registry.gate import Metrics
from factory.registry.lineage import Lineage
from factory.registry.mlflow_store import Entry


class Evidence:
    """Results in the object store, found through the tags of a version."""

    def __init__(self, settings: Settings, objects: ObjectStore) -> None:
        self._settings, self._objects = settings, objects

    def tags(
        self,
        adapter_hash: str,
        lineage: Lineage,
        evaluation: Object,
        base_evaluation: Object,
        *,
        whole: bool = False,
    ) -> dict[str, str]:
        """Tags that tie results to a version. Raises `RegistryError` when they are of another."""
        mine, base = load(evaluation), load(base_evaluation)
        who, whose = mine.summary.answered_by, base.summary.answered_by
        made_of = (adapter_hash, None) if whole else (lineage.base_hash, adapter_hash)
        if (who.model_hash, who.adapter_hash) != made_of:
            raise RegistryError("the results were not made with this base and adapter; judge again")
        if (whose.model_hash, whose.adapter_hash) != (lineage.base_hash, None):
            raise RegistryError("the base's results were not made with this base; judge it again")
        suite = mine.summary.suite_hash
        if suite != base.summary.suite_hash:
            raise RegistryError("candidate and base were judged on two suites; use one")
        metrics = self.metrics(mine, lineage.base_model)
        return {
            "suite_hash": suite,
            _tag(suite): f"{evaluation.name}/{evaluation.hash}",
            _tag(suite, base=True): f"{base_evaluation.name}/{base_evaluation.hash}",
            "metrics": json.dumps(metrics.as_dict()),
        }

    def of(self, entry: Entry, suite_hash: str, *, base: bool = False) -> Results | None:
        """Results of a version, or of its base, verified; None when there are none on that suite.

        Raises `RegistryError` when they are gone or changed.
        """
        reference = entry.tags.get(_tag(suite_hash, base=base))
        if reference is None:
            return None
        try:
            item = self._objects.get(KIND, *reference.split("/"))
            self._objects.verify(item)
            return load(item)
        except (CatalogError, EvaluationError) as error:
            raise RegistryError(
                f"the results of version {entry.version} cannot be used: {error}. "
                "Run `python -m pipelines.evaluate` on its adapter again."
            ) from error

    def metrics(self, found: Results, model: str) -> Metrics:
        """Metrics at today's list price of the catalog's `model`."""
        known = self._settings.models.get(model)
        return Metrics.of(found, None if known is None else known.price)


def _tag(suite_hash: str, *, base: bool = False) -> str:
    return f"{'base_' if base else ''}evaluation.{suite_hash[:16]}"

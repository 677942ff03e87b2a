"""What the demo found, as the plain values its report is made of.

judged(base, candidate)["by_label"], loss_curve(factory, run_id), lineage(factory, NAME, 3)
"""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from factory import Factory
from factory.evaluation.results import CaseResult, Results


def results(factory: Factory, figures: Mapping[str, Any]) -> Results:
    """The saved results that a job's closing line speaks of."""
    return factory.results(Path(figures["results"]).parent.name)


def judged(base: Results, candidate: Results) -> dict[str, Any]:
    """Both on one suite: accuracies with intervals, by label, and by confidence."""

    def summary(results: Results) -> dict[str, Any]:
        found = results.summary
        return {
            "accuracy": found.accuracy,
            "low": found.low,
            "high": found.high,
            "secondary": dict(found.secondary),
            "p95_ms": found.p95_ms,
        }

    by_label: dict[str, list[bool]] = defaultdict(list)
    for case in candidate.cases:
        by_label[case.expected].append(case.score)
    return {
        "suite": candidate.summary.suite_name,
        "suite_hash": candidate.summary.suite_hash,
        "cases": candidate.summary.cases,
        "base": summary(base),
        "candidate": summary(candidate),
        "by_label": {
            label: {"cases": len(scores), "accuracy": sum(scores) / len(scores)}
            for label, scores in by_label.items()
        },
        "coverage": coverage(candidate.cases),
    }


def coverage(cases: Sequence[CaseResult]) -> list[tuple[float, float]]:
    """(share kept, accuracy of those kept), keeping the most confident cases first."""
    ranked = sorted(cases, key=lambda case: case.confidence or 0.0, reverse=True)
    right, curve = 0, []
    for index, case in enumerate(ranked, start=1):
        right += case.score
        if index >= 10 or index == len(ranked):
            curve.append((index / len(ranked), right / index))
    return curve


def loss_curve(factory: Factory, run_id: str) -> list[tuple[int, float]]:
    """(step, loss) of a run, from MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(factory.settings.mlflow_uri)
    history = client.get_metric_history(run_id, "loss")
    return [(metric.step, metric.value) for metric in history]


def lineage(factory: Factory, name: str, version: int) -> dict[str, str]:
    """What a version was made from."""
    line = factory.registry.get(name, version).lineage
    return {
        "data": line.data_hash,
        "base": f"{line.base_model} {line.base_hash}",
        "suite": line.suite_hash,
        "code": f"{line.code.commit}{' (dirty)' if line.code.dirty else ''}",
        "seeds": json.dumps(line.seeds),
        "config": json.dumps(line.config),
        "versions": json.dumps(line.versions),
    }


def machine() -> dict[str, Any]:
    """Where this ran."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }

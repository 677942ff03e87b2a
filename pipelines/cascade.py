"""The student below its teacher: the configuration, the threshold, and what the two save.

    document = with_student(yaml.safe_load(text))      # tier 1 the student, tier 2 its teacher
    found = calibrate(factory, suite, target=0.55)     # from which confidence on its answer is sent
    comparison = compared(alone, cascade, nusd_per_hour)

The demo runs it; any other pair of models goes the same way by hand, with a `factory.yaml` of two
tiers and `factory routing calibrate --kind confidence`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from factory import Factory
from factory import config as configuration
from factory.config import ConfigError, Endpoint
from factory.evaluation.compare import compare_scores
from factory.ledger.calibrations import Calibration, save
from factory.ledger.money import per_thousand, usd
from factory.routing.calibration import confidence_threshold, subject
from factory.routing.threshold import Target, Threshold
from pipelines.accounting import quantile
from pipelines.traffic import Reply
from serve_apps.up import resolve

STUDENT, TEACHER, GATE = "helpdesk-student", "smollm2-135m", "helpdesk"
PRICE_SHARE = 0.5
"""The student's list price by the teacher's: it has less than half the parameters."""
DISTINCT = ("easy", "stream", "hard")
"""Kinds of requests that ask each question once."""


def with_student(document: Mapping[str, Any]) -> dict[str, Any]:
    """A `factory.yaml` with the student on tier 1, and its teacher moved up to tier 2.

    Every endpoint that reaches the teacher reaches both, and the student has the teacher's gate.
    Raises `ConfigError` when the teacher does not stand on tier 1, or tier 2 is taken.
    """
    made = copy.deepcopy(dict(document))
    models, endpoints = made["models"], made["endpoints"]
    teacher = models.get(TEACHER)
    if teacher is None or teacher["tier"] != 1:
        raise ConfigError(
            f"the student goes below '{TEACHER}', which has to stand on tier 1 before; "
            "set models.smollm2-135m.tier, or run with the packaged factory.yaml"
        )
    teacher["tier"] = 2
    models[STUDENT] = {
        "source": {"registry": f"models:/{STUDENT}@champion"},
        "engine": teacher["engine"],
        "tier": 1,
        "price": {
            name: round(PRICE_SHARE * usd_per_mtok, 6)
            for name, usd_per_mtok in teacher["price"].items()
        },
        "max_model_len": teacher.get("max_model_len", 2048),
    }
    for endpoint in endpoints.values():
        tiers = endpoint.get("tiers", Endpoint.model_fields["tiers"].default)
        if 1 in tiers and endpoint.get("task", "generate") == "generate":
            endpoint["tiers"] = sorted({*tiers, 2})
    gates = made.setdefault("gates", {})
    if GATE in gates:
        gates.setdefault(STUDENT, copy.deepcopy(gates[GATE]))
    return made


def write_config(file: Path | None, home: Path, target: Path) -> None:
    """Write the configuration of `file` (the packaged one without) with the student to `target`.

    Names of environment variables stay names. Raises `ConfigError`.
    """
    text = configuration.default_text() if file is None else file.read_text("utf-8")
    made = with_student(yaml.safe_load(text)) | {"home": str(home)}
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}")
    draft.write_text(
        "# The student below its teacher; `factory --config THIS-FILE up` serves it.\n"
        + yaml.safe_dump(made, sort_keys=False),
        "utf-8",
    )
    configuration.load(draft)
    draft.replace(target)


def calibrate(
    factory: Factory, suite: Path, target: float, progress: Callable[[int], None]
) -> dict[str, Threshold]:
    """The confidence from which on the student's answer is sent, by endpoint, put to use.

    Of the answers that are sent at least `target` are right, with 95 % probability, as judged by
    `suite`, whose questions must be others than those it is measured on later. Where that cannot
    be certified, `routing.confidence_threshold` holds. Raises `CatalogError`, `ConfigError` or
    `EvaluationError`.
    """
    cases = factory.evaluate(suite, STUDENT, progress=progress).results.cases
    found = confidence_threshold(
        [case.confidence or 0.0 for case in cases],
        [float(case.score) for case in cases],
        Target("quality", target),
    )
    calibrated = {}
    for name, ladder in resolve(factory.settings, factory.ledger).tiers.items():
        if not {1, 2} <= ladder.keys() or ladder[1].model != STUDENT:
            continue
        calibrated[name] = found
        if found.value is None:
            continue
        versions = {str(tier): f"{one.model}@{one.version}" for tier, one in ladder.items()}
        save(
            factory.ledger,
            Calibration(
                kind="confidence",
                scope=name,
                subject=subject(versions),
                detail={"tier": 1, "threshold": found.detail()},
                created_at=datetime.now(UTC),
            ),
        )
    if not calibrated:
        raise ConfigError(
            f"no endpoint has {STUDENT} on tier 1 and a model on tier 2; give one both tiers"
        )
    return calibrated


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of the traffic."""

    replies: Sequence[Reply]
    """In the order of the requests."""
    accounted: Mapping[str, Any]
    """What `accounting.account` says about them."""
    seconds: float
    """From the first request to the last answer."""


def compared(alone: Pass, cascade: Pass, nusd_per_hour: int) -> dict[str, Any]:
    """Cost, quality and speed of the same requests, the teacher alone and below it the student.

    `nusd_per_hour` is what an hour of the machine costs. Quality is that of the questions that
    are asked once; its difference has a paired 95 % interval.
    """
    before, after = (_distinct(one.replies) for one in (alone, cascade))
    quality = compare_scores(before, after, suite_hash="")
    rows = {
        "teacher": _row(alone, nusd_per_hour),
        "cascade": _row(cascade, nusd_per_hour),
    }
    asked = [reply for reply in cascade.replies if "tier 1" in _reason(reply)]
    spent = {name: row["cost_per_1k_nusd"] for name, row in rows.items()}
    return {
        **rows,
        "questions": quality.cases,
        "difference": [quality.low, quality.difference, quality.high],
        "saving": 1 - spent["cascade"] / spent["teacher"] if spent["teacher"] else 0.0,
        "climbed": sum("climb to tier 2" in _reason(reply) for reply in asked),
        "asked_student": len(asked),
    }


def _row(one: Pass, nusd_per_hour: int) -> dict[str, Any]:
    answered = [reply for reply in one.replies if reply.status == 200]
    computed = [reply for reply in answered if reply.headers.get("x-factory-cache") != "hit"]
    scores = _distinct(one.replies)
    cost = int(one.accounted["costs"]["cost_nusd"])
    per_1k = per_thousand(cost, len(answered)) or 0
    machine = round(1000 * nusd_per_hour * one.seconds / 3600 / max(len(answered), 1))
    latencies = sorted(reply.latency_ms for reply in computed)
    return {
        "answered": len(answered),
        "computed": len(computed),
        "accuracy": sum(scores) / max(len(scores), 1),
        "cost_per_1k_nusd": per_1k,
        "cost_per_1k_usd": usd(per_1k),
        "cost_per_1k_right_usd": usd(
            round(1000 * cost / max(sum(reply.correct for reply in answered), 1))
        ),
        "machine_per_1k_usd": usd(machine),
        "answers_per_s": len(computed) / one.seconds,
        "p50_ms": quantile(latencies, 0.5),
        "p95_ms": quantile(latencies, 0.95),
        "tiers": {str(row["tier"]): row["share"] for row in one.accounted["tiers"]},
    }


def _distinct(replies: Sequence[Reply]) -> list[bool]:
    return [reply.correct for reply in replies if reply.request.kind in DISTINCT]


def _reason(reply: Reply) -> str:
    return str(reply.headers.get("x-factory-route-reason", ""))

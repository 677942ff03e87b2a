"""Results: what a suite found out about a model, saved as `cases.jsonl` and `summary.json`.

    item = save(store, results)          # an Object of kind "evaluations", all or nothing
    results = load(item)

A summary carries all that makes two scores comparable: suite version and hash, template hash,
backend with library versions, generation settings, seeds and n-shot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import stats

from factory.catalog.objects import Object, ObjectStore
from factory.config import Price

KIND = "evaluations"
CASES = "cases.jsonl"
SUMMARY = "summary.json"


class EvaluationError(Exception):
    """An evaluation that cannot be done or read; the message says what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Identity(_Record):
    """Who answered, in all that can change an answer."""

    backend: Literal["transformers", "endpoint"]
    """How answers were made."""
    model: str
    """Name or path of the model, for people."""
    model_hash: str | None = None
    """Content hash of the weights; None when they are out of sight, behind an endpoint."""
    adapter_hash: str | None = None
    """Content hash of the adapter; None for the bare model."""
    template_hash: str | None = None
    """sha256 of the chat template."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Library versions."""
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Generation settings."""


class CaseResult(_Record):
    """One case, answered and scored."""

    id: str
    """The case's id."""
    expected: str
    """The right answer."""
    answer: str
    """The model's answer, empty when there was an error."""
    score: bool
    """Right or wrong by the suite's primary scorer."""
    scores: dict[str, bool]
    """Right or wrong by every scorer that fits the suite."""
    latency_ms: float
    """Time until the answer was there; in a batch, the time of the whole batch."""
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens generated, the end token included."""
    confidence: float | None = None
    """Geometric mean probability of the generated tokens."""
    error: str | None = None
    """Why there is no answer; such a case counts as wrong."""


class Summary(_Record):
    """The whole suite in one record."""

    suite_name: str
    suite_version: int
    suite_hash: str
    cases: int
    scorer: str
    answered_by: Identity
    seeds: dict[str, int]
    """Empty for greedy decoding of a whole suite: nothing is drawn."""
    n_shot: int = 0
    accuracy: float
    """Share of right answers by the primary scorer."""
    low: float
    """Lower end of the 95 % Wilson interval."""
    high: float
    """Upper end of the 95 % Wilson interval."""
    secondary: dict[str, float]
    """Share of right answers by the other scorers."""
    errors: int
    p50_ms: float
    p95_ms: float
    prompt_tokens: int
    completion_tokens: int
    cost_nusd: int | None
    """List price of the whole run in nano-dollars; None when no price is known."""

    @property
    def cost_per_1k_usd(self) -> Decimal | None:
        """List price of 1,000 such cases, in US dollars."""
        return None if self.cost_nusd is None else usd_per_1k(self.cost_nusd, self.cases)


@dataclass(frozen=True, slots=True)
class Results:
    """A summary and the cases under it, in the suite's order."""

    summary: Summary
    cases: tuple[CaseResult, ...]

    @property
    def key(self) -> str:
        """Fingerprint of suite and answerer: equal keys mean the same measurement."""
        return key(self.summary.suite_hash, self.summary.answered_by)


def key(suite_hash: str, identity: Identity) -> str:
    """Hex sha256 over the suite's hash and all that can change an answer to it."""
    text = json.dumps([suite_hash, identity.model_dump(mode="json", exclude={"model"})])
    return hashlib.sha256(text.encode()).hexdigest()


def wilson(right: int, cases: int) -> tuple[float, float]:
    """95 % interval of a proportion by Wilson (1927)."""
    interval = stats.binomtest(right, cases).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def percentile(values: Sequence[float], share: float) -> float:
    """The `share` quantile, 0 to 1, by linear interpolation."""
    return float(np.quantile(np.asarray(values), share))


def cost_nusd(cases: Sequence[CaseResult], price: Price | None) -> int | None:
    """List price of all cases in nano-dollars, each priced as one request; None without price."""
    if price is None:
        return None
    return sum(price.nano_usd(case.prompt_tokens, case.completion_tokens) for case in cases)


def usd_per_1k(cost_nusd: int, cases: int) -> Decimal:
    """US dollars for 1,000 cases where `cases` cost that much, rounded up to a nano-dollar."""
    nano = -(-cost_nusd * 1000 // cases)
    return Decimal(nano).scaleb(-9)


def object_name(suite_name: str, fingerprint: str) -> str:
    """Name under which the object store keeps the results with that key."""
    return f"{suite_name}-{fingerprint[:16]}"


def save(store: ObjectStore, results: Results) -> Object:
    """Keep results in the object store, whole or not at all. Raises `CatalogError`."""
    summary = results.summary

    def fill(folder: Path) -> None:
        rows = (case.model_dump_json() + "\n" for case in results.cases)
        (folder / CASES).write_text("".join(rows), "utf-8")
        (folder / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n", "utf-8")

    return store.put(
        KIND,
        object_name(summary.suite_name, results.key),
        fill,
        meta={"key": results.key, "suite_hash": summary.suite_hash, "accuracy": summary.accuracy},
    )


def load(item: Object) -> Results:
    """Read saved results. Raises `EvaluationError` when they are not whole."""
    try:
        summary = Summary.model_validate_json((item.path / SUMMARY).read_text("utf-8"))
        lines = (item.path / CASES).read_text("utf-8").split("\n")
        cases = tuple(CaseResult.model_validate_json(line) for line in lines if line)
    except (OSError, ValidationError) as error:
        raise EvaluationError(
            f"cannot read the results in '{item.path}': {error}. Remove the folder, judge again."
        ) from error
    if len(cases) != summary.cases:
        raise EvaluationError(
            f"'{item.path}' holds {len(cases)} of {summary.cases} cases; "
            "remove the folder and judge again"
        )
    return Results(summary, cases)

"""Is one model better than another on the same cases?

    comparison = compare(base, candidate)      # two Results of one suite
    comparison.difference, comparison.low, comparison.high, comparison.p_value

The interval is a paired bootstrap (percentile, Efron 1979) of the difference in accuracy: whole
pairs are drawn, which is to draw their differences. The p-value is an exact McNemar test (1947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from factory.evaluation.results import EvaluationError, Results

RESAMPLES = 9_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against base on the same cases; accuracies and differences are shares of 1."""

    suite_hash: str
    cases: int
    base_score: float
    candidate_score: float
    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int

    def __str__(self) -> str:
        return (
            f"{self.base_score:.1%} -> {self.candidate_score:.1%}, difference "
            f"{self.difference:+.1%} [{self.low:+.1%}, {self.high:+.1%}], p = {self.p_value:.2g}, "
            f"{self.gained} gained, {self.lost} lost of {self.cases}"
        )


def compare(base: Results, candidate: Results, *, seed: int = 0) -> Comparison:
    """Compare two results of one suite; 95 % interval of candidate minus base.

    Raises `EvaluationError` when suite hash or case ids differ.
    """
    if base.summary.suite_hash != candidate.summary.suite_hash:
        raise EvaluationError(
            f"cannot compare results of two suites ({base.summary.suite_hash[:12]} and "
            f"{candidate.summary.suite_hash[:12]}); judge both models on the same suite"
        )
    if [case.id for case in base.cases] != [case.id for case in candidate.cases]:
        raise EvaluationError("cannot compare: the two results hold different cases; judge again")
    return compare_scores(
        [case.score for case in base.cases],
        [case.score for case in candidate.cases],
        suite_hash=base.summary.suite_hash,
        seed=seed,
    )


def compare_scores(
    base: Sequence[bool], candidate: Sequence[bool], *, suite_hash: str, seed: int = 0
) -> Comparison:
    """Compare two equally long, aligned lists of right and wrong. Raises `EvaluationError`."""
    if not base or len(base) != len(candidate):
        raise EvaluationError(f"cannot compare {len(base)} scores with {len(candidate)}")
    before, after = np.asarray(base, dtype=float), np.asarray(candidate, dtype=float)
    change = after - before
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    low = high = float(change.mean())
    if np.ptp(change) > 0:
        interval = stats.bootstrap(
            (change,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=1_000,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    pairs = gained + lost
    return Comparison(
        suite_hash=suite_hash,
        cases=len(base),
        base_score=float(before.mean()),
        candidate_score=float(after.mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        p_value=float(stats.binomtest(gained, pairs, 0.5).pvalue) if pairs else 1.0,
        gained=gained,
        lost=lost,
    )

"""The score that is enough: the lowest whose false hits are provably few, or none at all.

    calibration = calibrate(scores, same, max_false_hits=0.01, confidence=0.95)
    calibration.threshold, calibration.bound          # None when nothing can be shown: stay off

A false hit is a pair that means different things and scores at least the threshold; its rate is
taken over the pairs that differ, so it does not depend on how many of each were labelled. Many
thresholds are looked at, which by itself would make one of them look good by luck. So they are
tested in an order fixed beforehand, strictest first, each at the full level, and the first failure
ends it (fixed-sequence testing, Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052). Each
test is the exact one-sided binomial bound (Clopper and Pearson 1934). It holds for new pairs that
are drawn as the labelled ones were; several pairs of one question count as independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STEPS: tuple[float, ...] = tuple(round(1 - 10 ** (-4 + 3.7 * step / 120), 6) for step in range(121))
"""Thresholds in the order they are tested: 0.9999 down to about 0.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one team's threshold rests on."""

    threshold: float | None
    """The lowest admissible score; None keeps the semantic cache off."""
    bound: float
    """Upper bound on the rate of false hits at the threshold; of the strictest when off."""
    max_false_hits: float
    """The rate that was allowed."""
    confidence: float
    """Confidence of the bound."""
    n: int
    """Labelled pairs."""
    n_different: int
    """Pairs among them that differ in meaning."""
    false_hits: int
    """Pairs that differ and score at least the threshold."""
    hits: int
    """Pairs that mean the same and score at least the threshold."""
    hit_rate: float
    """Share of the pairs of one meaning that hit."""
    reasons: tuple[str, ...]
    """Why this threshold, or why none."""


def upper_bound(false_hits: int, n: int, confidence: float) -> float:
    """One-sided Clopper-Pearson bound of a rate seen `false_hits` times in `n`; 1 without data."""
    from scipy.stats import beta

    if n == 0 or false_hits >= n:
        return 1.0
    return float(beta.ppf(confidence, false_hits + 1, n - false_hits))


def calibrate(
    scores: Sequence[float] | NDArray[np.float64],
    same: Sequence[bool] | NDArray[np.bool_],
    *,
    max_false_hits: float,
    confidence: float = 0.95,
    steps: Sequence[float] = STEPS,
) -> Calibration:
    """The lowest threshold of `steps` (descending) whose bound is at most `max_false_hits`.

    `scores` are those of `PairModel.compare` for labelled pairs, `same` their labels.
    Raises `ValueError` when the two differ in length or `steps` do not descend.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(same, dtype=bool)
    if values.shape != labels.shape:
        raise ValueError(f"{len(values)} scores do not fit {len(labels)} labels")
    if not steps or any(x <= y for x, y in pairwise(steps)):
        raise ValueError("the thresholds must descend")
    different, equal = values[~labels], values[labels]
    best: float | None = None
    bound = upper_bound(int((different >= steps[0]).sum()), len(different), confidence)
    for threshold in steps:
        here = upper_bound(int((different >= threshold).sum()), len(different), confidence)
        if here > max_false_hits:
            break
        best, bound = threshold, here
    at = best if best is not None else np.inf
    hits = int((equal >= at).sum())
    return Calibration(
        threshold=best,
        bound=bound,
        max_false_hits=max_false_hits,
        confidence=confidence,
        n=len(values),
        n_different=len(different),
        false_hits=int((different >= at).sum()),
        hits=hits,
        hit_rate=hits / len(equal) if len(equal) else 0.0,
        reasons=_reasons(best, bound, len(different), max_false_hits, confidence),
    )


def needed(max_false_hits: float, confidence: float) -> int:
    """Pairs that differ needed before any threshold can pass: (1 - m)^n must fall to 1 - c."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - max_false_hits)))


def _reasons(
    best: float | None, bound: float, different: int, allowed: float, confidence: float
) -> tuple[str, ...]:
    if best is not None:
        return (
            f"{confidence:.0%} sure that at most {bound:.2%} of the pairs that differ score "
            f"{best:g} or more ({different} seen)",
        )
    least = needed(allowed, confidence)
    if different < least:
        return (
            f"off: {different} pairs that differ cannot show a rate of {allowed:g}; "
            f"label at least {least}",
        )
    return (
        f"off: even the strictest threshold may have {bound:.2%} false hits, over {allowed:.2%}",
    )

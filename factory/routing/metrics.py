"""How good a router is between two tiers: quality against the share of strong calls.

    curve = curve_of(score, weak, strong)         # score: higher goes to the strong tier first
    apgr(curve), cpt(curve, 0.5)

Definitions of RouteLLM (Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data",
2024, section 3): with r the mean quality at some share of strong calls, the performance gap
recovered is PGR = (r - r_weak) / (r_strong - r_weak); APGR is its integral over the share from 0
to 1, so that random mixing has 0.5; CPT(x) is the least share with a PGR of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from factory.routing.errors import RoutingError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Mean quality at each share of strong calls, both (points,), from share 0 to 1."""

    share: Floats
    quality: Floats

    @property
    def pgr(self) -> Floats:
        """Performance gap recovered at each point. Raises `RoutingError` when there is no gap."""
        weak, strong = self.quality[0], self.quality[-1]
        if strong <= weak:
            raise RoutingError(
                "the strong tier is no better than the weak one on these prompts, so there is no "
                "gap to recover: send everything to the weak tier"
            )
        recovered: Floats = (self.quality - weak) / (strong - weak)
        return recovered


def curve_of(score: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> Curve:
    """The curve of a router that sends the highest scores to the strong tier first.

    All are (n,). Requests with equal scores cannot be told apart: between their thresholds the
    curve is straight, which is what sending some of them at random gives.
    """
    order = np.asarray(score, dtype=np.float64)
    low, high = np.asarray(weak, dtype=np.float64), np.asarray(strong, dtype=np.float64)
    if not len(order):
        raise RoutingError("there is no request to judge a router on")
    ranked = np.argsort(-order, kind="stable")
    quality = np.concatenate([[low.sum()], low.sum() + np.cumsum((high - low)[ranked])])
    last = np.flatnonzero(np.diff(order[ranked], append=-np.inf) != 0) + 1
    places = np.concatenate([[0], last])
    return Curve(places / len(order), quality[places] / len(order))


def apgr(curve: Curve) -> float:
    """Average performance gap recovered: the area under PGR over the share of strong calls."""
    return float(np.trapezoid(curve.pgr, curve.share))


def apgr_of_thresholds(
    score: ArrayLike, weak: ArrayLike, strong: ArrayLike, count: int = 10
) -> float:
    """APGR as RouteLLM's evaluation computes it, for comparison with published figures.

    The thresholds are the `count` + 1 quantiles of the scores; equal scores move together. The
    trapezoid rule on so few points takes a little away from a curve that bends.
    """
    scores = np.asarray(score, np.float64)
    low, high = np.asarray(weak, np.float64), np.asarray(strong, np.float64)
    if high.sum() <= low.sum():
        return apgr(curve_of(score, weak, strong))
    share, recovered = [0.0], [0.0]
    thresholds = np.unique(np.quantile(scores, np.linspace(0, 1, count + 1)))
    # None is above the highest threshold: that is the point where all stay below.
    for threshold in thresholds[-2::-1] if len(thresholds) > 1 else thresholds:
        chosen = scores >= threshold
        share.append(float(chosen.mean()))
        recovered.append(float((high - low)[chosen].sum() / (high - low).sum()))
    return float(np.trapezoid(recovered, share))


def apgr_of_ten(curve: Curve) -> float:
    """The paper's approximation with ten terms: the mean PGR at shares of 10 %, 20 %, … 100 %.

    It has no term at 0 %, so random mixing has 0.55: compare it with nothing but itself.
    """
    return float(np.mean(np.interp(np.linspace(0.1, 1, 10), curve.share, curve.pgr)))


def cpt(curve: Curve, recovered: float) -> float:
    """Call-performance threshold: the least share of strong calls, in percent, with that PGR."""
    pgr = curve.pgr
    place = int(np.argmax(pgr >= recovered))
    if place == 0:
        return 0.0
    left, right = pgr[place - 1], pgr[place]
    step = (recovered - left) / (right - left)
    share = curve.share[place - 1] + step * (curve.share[place] - curve.share[place - 1])
    return float(100 * share)


def random_curve(weak: ArrayLike, strong: ArrayLike) -> Curve:
    """Random mixing: a straight line from the weak tier to the strong one."""
    return curve_of(np.zeros(len(np.asarray(weak))), weak, strong)


def oracle_curve(weak: ArrayLike, strong: ArrayLike) -> Curve:
    """A router that knows both answers' quality beforehand."""
    return curve_of(np.asarray(strong, float) - np.asarray(weak, float), weak, strong)

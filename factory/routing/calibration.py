"""Thresholds to a target (quality at least q, cost at most c), with a bound on being wrong.

    found = router_threshold(p_good, good, prices, grid, Target("quality", 0.9))
    found = confidence_threshold(confidences, right, Target("quality", 0.9))
    found.value, found.bound, found.reasons       # value is None when the data do not suffice

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021): thresholds fixed beforehand are
tested one after another by fixed-sequence testing from several starts, so that with probability
`confidence` every accepted one meets the target on requests like those it was calibrated on,
whatever their distribution and however bad the router. The tests are the exact binomial one
(Clopper and Pearson 1934) for right-or-wrong labels and Hoeffding-Bentkus (Bates et al. 2021)
for anything else between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from factory.routing.bounds import needed
from factory.routing.certify import STARTS, Point, choose
from factory.routing.errors import RoutingError
from factory.routing.threshold import Target, Threshold

__all__ = [
    "Target",
    "Threshold",
    "confidence_threshold",
    "gains",
    "outdated",
    "picks",
    "router_threshold",
    "subject",
]

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""Probability with which a calibrated threshold meets its target."""

GRID = 100
"""Thresholds tried for a confidence."""


def router_threshold(
    p_good: ArrayLike,
    good: ArrayLike,
    prices: Sequence[float],
    grid: Sequence[float],
    target: Target,
    confidence: float = CONFIDENCE,
    second: tuple[ArrayLike, float, float] | None = None,
) -> Threshold:
    """The threshold on the gain (see `picks`) that meets `target` best.

    `p_good` (n, tiers) are a router's estimates, `good` (n, tiers) the labels in [0, 1], `prices`
    (tiers) the expected nano-dollars of a request by tier, ascending tiers throughout. `grid` are
    thresholds fixed without these labels (`Router.grid`). A quality target takes the cheapest
    certified threshold, a cost target the best one. The data must not have trained the router.
    `second` has the estimates of a router that decides where the first one's gain is nearer to the
    threshold than a margin, then that margin, and the price of asking it.
    """
    estimates, labels = _matrix(p_good, "p_good"), _matrix(good, "good")
    cost = _finite(prices, "prices")
    if estimates.shape != labels.shape or cost.shape != (labels.shape[1],):
        raise RoutingError("p_good, good and prices must speak of the same tiers and requests")
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise RoutingError("labels must lie between 0 (bad) and 1 (good)")
    rows = np.arange(len(labels))
    points = []
    for value in sorted({float(one) for one in grid}, reverse=target.kind == "cost"):
        tier = picks(estimates, value)
        asked = np.zeros(len(rows), dtype=bool)
        if second is not None:
            asked = near(estimates, value, second[1])
            tier = np.where(asked, picks(second[0], value), tier)
        quality = labels[rows, tier]
        cheap = float(np.mean(tier == 0)) if len(rows) else 0.0
        merit = float(quality.mean()) if len(rows) else 0.0
        paid = cost[tier] + asked * (0.0 if second is None else second[2])
        points.append(Point(value, quality, paid, cheap, merit))
    dearest = float(cost.max()) + (0.0 if second is None else second[2])
    return choose(points, target, confidence, (float(cost.min()), dearest))


def confidence_threshold(
    confidences: ArrayLike,
    right: ArrayLike,
    target: Target,
    prices: tuple[float, float] = (0.0, 0.0),
    confidence: float = CONFIDENCE,
    grid: Sequence[float] | None = None,
) -> Threshold:
    """The confidence from which on a cheap answer is sent instead of climbing.

    `confidences` (n) and `right` (n, in [0, 1]) are pairs of a cheap answer's own confidence and
    whether it was good. Quality means that of the answers that are sent (selective risk, Geifman
    and El-Yaniv 2017): what climbs is judged elsewhere. Cost is `prices[0]` for every request and
    `prices[1]` more for each that climbs. Without a `grid`, every fifth pair is spent on choosing
    the thresholds to try, its label unseen.
    """
    sure, labels = _finite(confidences, "confidences"), _finite(right, "right")
    if sure.shape != labels.shape or sure.ndim != 1:
        raise RoutingError("give one label for each confidence")
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise RoutingError("labels must lie between 0 (wrong) and 1 (right)")
    if grid is None:
        spent = np.arange(len(sure)) % 5 == 4
        strictest = _strictest(target, confidence, int((~spent).sum()))
        levels = np.linspace(0, strictest, GRID)
        grid = np.quantile(sure[spent], levels).tolist() if spent.any() else [0.5]
        sure, labels = sure[~spent], labels[~spent]
    cheap, more = float(prices[0]), float(prices[1])
    points = []
    for value in sorted({float(one) for one in grid}, reverse=target.kind == "quality"):
        sent = sure >= value
        cost = np.where(sent, cheap, cheap + more)
        share = float(np.mean(sent)) if len(sent) else 0.0
        points.append(Point(value, labels[sent], cost, share, merit=-share))
    return choose(points, target, confidence, (cheap, cheap + more))


def _strictest(target: Target, confidence: float, n: int) -> float:
    """The quantile of confidences beyond which too few answers are left to certify anything."""
    if target.kind == "cost":
        return 1.0
    least = needed(0.0, 1 - target.value, (1 - confidence) / STARTS)
    return 1 - min(3 * least / max(n, 1), 0.5)


def gains(p_good: ArrayLike) -> Floats:
    """What a better tier promises over each, (n, tiers): the best above minus its own; top: -1."""
    estimates = np.asarray(p_good, dtype=np.float64)
    out = np.full(estimates.shape, -1.0)
    above = np.maximum.accumulate(estimates[:, ::-1], axis=1)[:, ::-1]
    out[:, :-1] = above[:, 1:] - estimates[:, :-1]
    return out


def picks(p_good: ArrayLike, threshold: float) -> NDArray[np.intp]:
    """The column of the lowest tier whose gain is at most `threshold`, for each row; else the top.

    A higher threshold never picks a higher tier: it is the price of quality, in quality.
    """
    fine = gains(p_good) <= threshold
    fine[:, -1] = True
    chosen: NDArray[np.intp] = np.argmax(fine, axis=1)
    return chosen


def near(p_good: ArrayLike, threshold: float, margin: float) -> NDArray[np.bool_]:
    """Rows in which a tier's gain lies within `margin` of the threshold (`Estimate.margin`)."""
    apart = np.abs(gains(p_good)[:, :-1] - threshold)
    found: NDArray[np.bool_] = apart.min(axis=1, initial=np.inf) <= margin
    return found


def subject(versions: Mapping[str, str]) -> str:
    """The models a calibration speaks of, by tier, as one string: `1=small@3; 2=large@*`.

    `*` stands for any version of that model: it had not answered when labels were brought.
    """
    return "; ".join(f"{name}={versions[name]}" for name in sorted(versions))


def outdated(recorded: str, current: str) -> tuple[str, ...]:
    """Why a calibration made for the subject `recorded` says nothing now; empty when it holds."""
    before, now = _parts(recorded), _parts(current)
    changed = [
        f"{name}={now.get(name, 'nothing')}"
        for name in sorted(before.keys() | now.keys())
        if not _matches(before.get(name, ""), now.get(name, ""))
    ]
    if not changed:
        return ()
    return (f"calibrated for other model versions (now {', '.join(changed)}): calibrate again",)


def _parts(subject: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in subject.split("; ") if part)


def _matches(before: str, now: str) -> bool:
    model, _, version = before.partition("@")
    return before == now or (version == "*" and now.partition("@")[0] == model)


def _finite(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise RoutingError(f"{name} contains a value that is not a finite number")
    return array


def _matrix(values: ArrayLike, name: str) -> Floats:
    array = _finite(values, name)
    if array.ndim != 2 or array.shape[1] < 1:
        raise RoutingError(f"{name} must have a row for each request and a column for each tier")
    return array

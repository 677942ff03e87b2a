"""Which of several thresholds meet a target for certain, and which of those to take.

choose([Point(value=0.1, quality=q, cost=c, cheap=0.6, merit=0.9), ...], target, 0.95, (10, 1000))

Fixed-sequence testing from several starts (Angelopoulos et al., "Learn then Test", 2021): the
points are ordered before a label is seen, and each walk spends its part of the error until a test
fails. So no threshold that misses the target is taken with more than the stated probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.routing.bounds import needed, p_value, upper_bound
from factory.routing.errors import RoutingError
from factory.routing.threshold import Target, Threshold

Floats = NDArray[np.float64]

STARTS = 4
"""Places where a walk over the thresholds begins; each may spend a part of the error."""


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold on the calibration data."""

    value: float
    quality: Floats
    """Of the answers it speaks of, each in [0, 1]."""
    cost: Floats
    """Nano-dollars of each request."""
    cheap: float
    """Share of requests that the lowest tier answers."""
    merit: float
    """What a cost target wants most of."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A target, as a limit on the mean of losses in [0, 1]."""

    target: Target
    confidence: float
    low: float
    """What a loss of 0 stands for: no bad answer, or the lowest price."""
    wide: float
    """The distance to what a loss of 1 stands for."""

    @property
    def limit(self) -> float:
        if self.target.kind == "quality":
            return 1 - self.target.value
        return (self.target.value - self.low) / self.wide

    @property
    def level(self) -> float:
        """Error that one walk may spend."""
        return (1 - self.confidence) / STARTS

    def losses(self, point: Point) -> Floats:
        if self.target.kind == "quality":
            return 1 - point.quality
        return (point.cost - self.low) / self.wide

    def loss(self, point: Point) -> float:
        return float(self.losses(point).mean())

    def measure(self, loss: float) -> float:
        """The quality or cost that a mean loss stands for."""
        return 1 - loss if self.target.kind == "quality" else self.low + self.wide * loss

    def show(self, loss: float) -> str:
        value = self.measure(loss)
        return f"{value:.4f}" if self.target.kind == "quality" else f"{value:.0f} nUSD"

    def worth(self, point: Point) -> tuple[float, float]:
        """How much a point that meets the target is liked: cheap, or good."""
        if self.target.kind == "quality":
            return -float(point.cost.mean()), point.cheap
        return point.merit, point.cheap


def choose(
    points: Sequence[Point], target: Target, confidence: float, cost_range: tuple[float, float]
) -> Threshold:
    """The best of the points that a walk certifies; `points` go from the safest to the boldest.

    `cost_range` are the lowest and the highest price a request can have. Raises `RoutingError`
    for a confidence that is none.
    """
    if not 0.5 <= confidence < 1:
        raise RoutingError(f"the confidence is {confidence}; give one from 0.5 up to below 1")
    if not points:
        raise RoutingError("there is no threshold to try")
    cheapest, dearest = cost_range
    if target.kind == "cost" and (target.value >= dearest or cheapest == dearest):
        return _free(points, target, confidence, fits=target.value >= dearest)
    low, high = (0.0, 1.0) if target.kind == "quality" else cost_range
    aim = Aim(target, confidence, low, high - low)
    certified = _walk(points, aim)
    if not certified:
        return _refuse(points, aim)
    best = max(certified, key=aim.worth)
    losses, loss = aim.losses(best), aim.loss(best)
    bound = upper_bound(losses, aim.level)
    reason = (
        f"{target} holds with probability {confidence:g}: {aim.show(loss)} on {len(losses)} "
        f"requests, bound {aim.show(bound)}; {best.cheap:.1%} stay on the lowest tier"
    )
    return Threshold(
        value=best.value,
        target=target,
        confidence=confidence,
        bound=aim.measure(bound),
        achieved=aim.measure(loss),
        cheap_share=best.cheap,
        n=len(losses),
        needed=None,
        reasons=(reason,),
    )


def _walk(points: Sequence[Point], aim: Aim) -> list[Point]:
    """Fixed-sequence testing: from each start onwards, up to the first test that fails."""
    certified: dict[int, Point] = {}
    for start in sorted({round(one) for one in np.linspace(0, len(points), STARTS + 1)[:-1]}):
        for index in range(start, len(points)):
            point = points[index]
            if index in certified or p_value(aim.losses(point), aim.limit) > aim.level:
                break
            certified[index] = point
    return list(certified.values())


def _free(points: Sequence[Point], target: Target, confidence: float, fits: bool) -> Threshold:
    """A cost target that needs no test: every threshold meets it, or none can."""
    best = max(points, key=lambda one: one.merit) if fits else points[0]
    cost = float(best.cost.mean()) if len(best.cost) else None
    why = "even the dearest tier costs no more" if fits else "every tier costs more"
    return Threshold(
        value=best.value if fits else None,
        target=target,
        confidence=confidence,
        bound=cost if fits else None,
        achieved=cost,
        cheap_share=best.cheap,
        n=len(best.cost),
        needed=None,
        reasons=(f"{target}: {why}",),
    )


def _refuse(points: Sequence[Point], aim: Aim) -> Threshold:
    """Say why nothing was certified, and how many labelled requests would be enough."""
    seen = [one for one in points if len(aim.losses(one))]
    n = max((len(aim.losses(one)) for one in seen), default=0)
    least = needed(0.0, aim.limit, aim.level)
    best = min(seen, key=lambda one: (aim.loss(one), -len(aim.losses(one))), default=None)
    wanted = math.inf
    if aim.limit <= 0:
        reason = "the lowest tier alone costs as much or more"
    elif best is None or (n < least and aim.loss(best) <= 2 * aim.limit):
        wanted = least
        reason = f"needs at least {least:.0f} labelled requests, there are {n}"
    elif aim.loss(best) >= aim.limit:
        reason = (
            f"out of reach: the best threshold gives {aim.show(aim.loss(best))} on {n} requests"
        )
    else:
        # Many requests say more of the rate than a handful at an extreme threshold; half as many
        # again, so that the next attempt is likely and not just even to succeed.
        large = [one for one in seen if len(aim.losses(one)) >= least] or [best]
        likely = [
            needed(aim.loss(one), aim.limit, aim.level) * n / len(aim.losses(one)) for one in large
        ]
        wanted = max(1.5 * min(likely), 1.25 * n, n + 1)
        reason = f"needs more labelled requests, there are {n}"
        if math.isfinite(wanted):
            reason = f"needs about {math.ceil(wanted)} labelled requests, there are {n}"
    return Threshold(
        value=None,
        target=aim.target,
        confidence=aim.confidence,
        bound=None,
        achieved=aim.measure(aim.loss(best)) if best is not None else None,
        cheap_share=None,
        n=n,
        needed=math.ceil(wanted) if math.isfinite(wanted) else None,
        reasons=(f"{aim.target}: {reason}",),
    )

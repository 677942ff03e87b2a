"""What a threshold has to reach, and a threshold that was found, with what it stands on.

target = Target("quality", 0.9)
Threshold.parse(found.detail()) == found     # as the ledger's calibrations keep it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from factory.routing.errors import RoutingError


@dataclass(frozen=True, slots=True)
class Target:
    """What a threshold has to reach."""

    kind: Literal["quality", "cost"]
    """`quality`: the share of good answers is at least `value`. `cost`: the mean price of a
    request is at most `value`."""
    value: float
    """A share between 0 and 1, or nano-dollars a request."""

    def __post_init__(self) -> None:
        if self.kind not in ("quality", "cost"):
            raise RoutingError(f"a target is 'quality' or 'cost', not '{self.kind}'")
        if not math.isfinite(self.value) or self.value < 0:
            raise RoutingError(f"the target {self.kind} is {self.value}; it must be at least 0")
        if self.kind == "quality" and not 0 < self.value < 1:
            raise RoutingError(
                f"the target quality is {self.value}; give a share between 0 and 1, such as 0.9"
            )

    def __str__(self) -> str:
        if self.kind == "quality":
            return f"quality >= {self.value:g}"
        return f"cost <= {self.value:.0f} nUSD a request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A calibrated threshold, or the reason why there is none."""

    value: float | None
    """The threshold; None when none could be certified."""
    target: Target
    """What was asked for."""
    confidence: float
    """Probability with which the target is met."""
    bound: float | None
    """Lower bound on the quality, or upper bound on the cost, at that threshold."""
    achieved: float | None
    """Quality or cost on the calibration data; the best that was seen, when refused."""
    cheap_share: float | None
    """Share of the calibration requests that the lowest tier answers."""
    n: int
    """Labelled requests that the tests used."""
    needed: int | None
    """When refused for want of data: about how many labelled requests would do."""
    reasons: tuple[str, ...]
    """For people and for the record."""

    def detail(self) -> dict[str, Any]:
        """Plain values for the ledger's calibrations."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def parse(cls, detail: Mapping[str, Any]) -> Threshold:
        """The inverse of `detail`. Raises `RoutingError` when it is none."""
        try:
            fields = {**detail, "target": Target(**detail["target"])}
            return cls(**{**fields, "reasons": tuple(detail["reasons"])})
        except (KeyError, TypeError) as error:
            raise RoutingError(f"a stored threshold cannot be read: {error}") from error

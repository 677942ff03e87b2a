"""What a learned router thinks of one prompt: for each tier, how likely its answer is good.

estimate = Estimate(((1, 0.62), (2, 0.91)))
estimate.lowest((1, 2), threshold=0.2)    # 2: it promises 0.29 more than tier 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Probabilities by tier, ascending."""

    p_good: tuple[tuple[int, float], ...]
    """Tier and the probability that its answer is good enough."""

    def lowest(self, tiers: Sequence[int], threshold: float) -> int | None:
        """The lowest of `tiers` over which no higher one of them promises more than `threshold`.

        The rule of `calibration.picks`, for one request. Tiers that the router does not know are
        disregarded; None when it knows none of them.
        """
        known = [(tier, p) for tier, p in self.p_good if tier in tiers]
        for place, (tier, p) in enumerate(known):
            above = [other for _, other in known[place + 1 :]]
            if not above or max(above) - p <= threshold:
                return tier
        return None

    def gain(self, tier: int) -> float:
        """What the best higher tier promises over `tier`; 0 when there is none or it is unknown."""
        known = dict(self.p_good)
        above = [p for other, p in self.p_good if other > tier]
        return max(above) - known[tier] if above and tier in known else 0.0

    def margin(self, threshold: float) -> float:
        """How far the gain that decides lies from `threshold`: the least distance of any tier's."""
        tiers = [tier for tier, _ in self.p_good][:-1]
        return min((abs(self.gain(tier) - threshold) for tier in tiers), default=1.0)

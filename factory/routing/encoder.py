"""When to spend a neural encoder on a routing decision.

    choice = worth(margin=0.04, spread=0.06, dear_nusd=2_000_000, cheap_nusd=20_000,
                   encoder_nusd=300, encoder_ms=40.0, slack_ms=200.0)
    choice.use, choice.reasons

The static embedding costs microseconds and is always there. A second router, which sees a real
encoder's vector too, sorts requests a little better; it is asked only where its answer may change
the decision, and where that change is worth more than its time and price (the value of
information, Howard 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Whether to ask the encoder."""

    use: bool
    """True when it pays."""
    p_flip: float
    """Chance that the second router decides otherwise."""
    saving_nusd: float
    """Expected worth of that, before the encoder's own price."""
    reasons: tuple[str, ...]
    """For the request's record."""


def p_flip(margin: float, spread: float) -> float:
    """Chance that an estimate that differs by a normal error of `spread` crosses `margin`."""
    if spread <= 0:
        return 0.0
    return 0.5 * math.erfc(abs(margin) / spread / math.sqrt(2))


def band(spread: float, dear_nusd: float, cheap_nusd: float, encoder_nusd: float) -> float:
    """The largest margin at which the encoder still pays; -1 when it never does."""
    from statistics import NormalDist

    gap = dear_nusd - cheap_nusd
    if gap <= 0 or spread <= 0 or encoder_nusd >= 0.5 * gap:
        return -1.0
    return spread * NormalDist().inv_cdf(1 - max(encoder_nusd / gap, 1e-9))


def worth(
    *,
    margin: float,
    spread: float,
    dear_nusd: int,
    cheap_nusd: int,
    encoder_nusd: int,
    encoder_ms: float,
    slack_ms: float | None,
) -> Spend:
    """Compare the encoder's price and time with what asking it is expected to be worth.

    `margin` is how far the first router's gain lies from the threshold, `spread` the standard
    deviation of the second router's gain around it, on prompts neither was fitted on. A decision
    that flips moves the price of the request by the difference of the two tiers. `slack_ms` is what
    the endpoint's latency target leaves; None means that there is no target.
    """
    flips = p_flip(margin, spread)
    saving = flips * max(dear_nusd - cheap_nusd, 0)
    if slack_ms is not None and encoder_ms > slack_ms:
        reason = (
            f"encoder not asked: it takes {encoder_ms:.0f} ms and the target leaves {slack_ms:.0f}"
        )
        return Spend(use=False, p_flip=flips, saving_nusd=saving, reasons=(reason,))
    use = saving > encoder_nusd
    sign = ">" if use else "<="
    reason = (
        f"encoder {'asked' if use else 'not asked'}: it may flip the decision with {flips:.2f}, "
        f"worth {saving:.0f} nUSD {sign} its price of {encoder_nusd}"
    )
    return Spend(use=use, p_flip=flips, saving_nusd=saving, reasons=(reason,))

"""When to spend a neural encoder on a routing decision.

choice = worth(gain=0.04, dear_nusd=2_000_000, cheap_nusd=20_000, encoder_nusd=300,
               encoder_ms=40.0, slack_ms=200.0)
choice.use, choice.reasons

The static embedding costs microseconds and is always there. A real encoder sorts requests a
little better; it is used only where that little is worth more than its time and price.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Whether to ask the encoder."""

    use: bool
    """True when it pays."""
    saving_nusd: float
    """Expected saving of the better decision, before the encoder's own price."""
    reasons: tuple[str, ...]
    """For the request's record."""


def worth(
    *,
    gain: float,
    dear_nusd: int,
    cheap_nusd: int,
    encoder_nusd: int,
    encoder_ms: float,
    slack_ms: float | None,
) -> Spend:
    """Compare the encoder's price and time with what it is expected to save.

    `gain` is the share of dear calls it saves at equal quality: the difference of the two routers'
    shares at the calibrated target, as `factory routing report` shows it. `slack_ms` is what the
    endpoint's latency target leaves; None means that there is no target.
    """
    saving = max(gain, 0.0) * max(dear_nusd - cheap_nusd, 0)
    if slack_ms is not None and encoder_ms > slack_ms:
        reason = f"the encoder takes {encoder_ms:.0f} ms and the target leaves {slack_ms:.0f} ms"
        return Spend(use=False, saving_nusd=saving, reasons=(reason,))
    use = saving > encoder_nusd
    sign = ">" if use else "<="
    reason = f"expected saving {saving:.0f} nUSD {sign} the encoder's {encoder_nusd} nUSD"
    return Spend(use=use, saving_nusd=saving, reasons=(reason,))

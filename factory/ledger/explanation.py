"""One request explained: why it was answered as it was, and what each part cost.

    request, charges = ledger.request("req-1")
    print(explain(request, charges))

Nothing is computed here: prices and reasons are those recorded when the request was answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from factory.ledger.money import usd
from factory.ledger.outcomes import Outcome
from factory.ledger.records import ChargeRecord, RequestRecord

if TYPE_CHECKING:
    from factory.ledger.nodes import RequestUsage


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one request was answered as it was, and what each part cost."""

    request: RequestRecord
    charges: tuple[ChargeRecord, ...]
    outcome: Outcome | None = None
    """The outcome that counts; None while none was reported."""
    usage: RequestUsage | None = None
    """What the nodes under it cost; None where no node-hours were counted for it."""

    def lines(self) -> list[str]:
        """The explanation as sentences for people."""
        asked, parts = self.request, len(self.charges)
        who = f"tier {asked.tier}, {asked.model or 'the cache'}" if asked.tier is not None else ""
        version = f" version {asked.model_version}" if asked.model_version else ""
        outcome = {
            "ok": f"answered by {who}{version}" if who else "answered",
            "refused": f"refused with HTTP {asked.http_status}",
            "error": f"failed with HTTP {asked.http_status}",
        }[asked.status]
        lines = [
            f"{asked.request_id}: endpoint {asked.endpoint or 'unknown'}, team "
            f"{asked.team or 'unknown'}, {asked.created_at.isoformat(timespec='seconds')}, "
            f"{outcome}{' (degraded)' if asked.degraded else ''}.",
            *(f"because {reason}" for reason in asked.reasons),
        ]
        if asked.error:
            lines.append(f"error: {asked.error}")
        for charge in self.charges:
            tier = "" if charge.tier is None else f" on tier {charge.tier}"
            model = f" ({charge.model})" if charge.model else ""
            lines.append(
                f"part {charge.seq + 1} of {parts}: {charge.kind}{tier}{model}, "
                f"{charge.prompt_tokens} + {charge.completion_tokens} tokens, "
                f"{charge.latency_ms:.1f} ms, {usd(charge.cost_nusd)} USD"
                + (f": {charge.reason}" if charge.reason else "")
            )
        lines.append(
            f"cost {usd(asked.cost_nusd)} USD; at the top tier {usd(asked.top_tier_nusd)} USD; "
            f"{asked.latency_ms:.1f} ms, {asked.overhead_ms:.1f} ms of it overhead."
        )
        if self.usage is not None:
            used = self.usage
            lines.append(
                f"usage basis: {usd(used.usage_nusd)} USD of node-hours, its part of the work "
                f"from {used.since:%H:%M:%S} to {used.until:%H:%M:%S} UTC, which {used.requests} "
                f"request{'' if used.requests == 1 else 's'} shared by list price."
            )
        if self.outcome is not None:
            lines.append(_told(self.outcome))
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: integers in `*_nusd`, exact decimal text in `*_usd`."""
        asked = asdict(self.request)
        asked |= {
            "created_at": self.request.created_at.isoformat(),
            "reasons": list(self.request.reasons),
            "cost_usd": usd(self.request.cost_nusd),
            "top_tier_usd": usd(self.request.top_tier_nusd),
            "charges": [_part(charge) for charge in self.charges],
            "outcome": self.outcome.as_dict() if self.outcome else None,
            "usage": self.usage.as_dict() if self.usage else None,
        }
        return asked


def explain(
    request: RequestRecord,
    charges: Iterable[ChargeRecord],
    outcome: Outcome | None = None,
    usage: RequestUsage | None = None,
) -> Explanation:
    """Why `request` was answered as it was, what each charge was for, and what came of it."""
    ordered = tuple(sorted(charges, key=lambda charge: charge.seq))
    return Explanation(request, ordered, outcome, usage)


def _told(outcome: Outcome) -> str:
    return (
        f"outcome: {'success' if outcome.success else 'no success'}, "
        f"{outcome.human_minutes:g} human minutes, reported by "
        f"{outcome.reporter or 'somebody'} at {outcome.created_at.isoformat(timespec='seconds')}"
        + (f": {outcome.comment}" if outcome.comment else "")
    )


def _part(charge: ChargeRecord) -> dict[str, Any]:
    part = asdict(charge)
    for name in ("request_id", "created_at", "team", "endpoint"):
        del part[name]
    return part | {"cost_usd": usd(charge.cost_nusd)}

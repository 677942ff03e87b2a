"""One request on its way: what has been decided, spent and charged so far, and its settlement.

journey.charge(served, answer.prompt_tokens, answer.completion_tokens, latency_ms, "answered")
await settle(journey, recorder, status="ok", http_status=200, ...)    # durable when it returns
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic_core import to_json

from factory.config import Price
from factory.gateway.clock import Clock
from factory.gateway.errors import unavailable
from factory.gateway.served import Served
from factory.ledger.errors import LedgerError
from factory.ledger.keys import ApiKey
from factory.ledger.money import usd
from factory.ledger.records import CacheUse, ChargeKind, ChargeRecord, RequestRecord, Status

if TYPE_CHECKING:
    from factory.gateway.cache import Entry

_log = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""Recorded when the client left before its answer was complete; nobody is sent this status."""

_HEADER_LENGTH = 500

_REUSES: dict[CacheUse, tuple[ChargeKind, str]] = {
    "hit": ("cache", "exact cache hit"),
    "semantic": ("cache", "semantic cache hit"),
    "shared": ("shared", "shared with an identical request in flight"),
}


class Recorder(Protocol):
    """Where settled requests go: `factory.ledger.writer.LedgerWriter`."""

    async def record(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Return when both are durable."""
        ...


@dataclass(slots=True, kw_only=True)
class Journey:
    """The state of one request. Created when its key is known."""

    request_id: str
    created_at: datetime
    started: float
    clock: Clock
    key: ApiKey
    top_price: Price
    endpoint: str = ""
    """Empty until the endpoint is known."""
    cache: CacheUse = "off"
    tier: int | None = None
    served: Served | None = None
    degraded: bool = False
    confidence: float | None = None
    """Of the last answer that was judged; a later tier may have given the one that is sent."""
    confidences: dict[int, float] = field(default_factory=dict)
    """By tier, of every answer that was judged."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_s: float = 0.0
    """Seconds spent waiting for models."""
    reasons: list[str] = field(default_factory=list)
    charges: list[ChargeRecord] = field(default_factory=list)
    pays: bool = False
    """A flight that this request began is paid and settled by the flight, not by its caller."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The client's `metadata`."""
    told: dict[str, str] = field(default_factory=dict)
    """More headers for the client, such as what is left of its rates."""
    after: list[Callable[[int], None]] = field(default_factory=list)
    """Called with the tokens that were really used, once the request is settled."""
    handed_over: bool = False
    """The ledger's writer has it: it will be written, or is lost and logged."""

    @property
    def cost_nusd(self) -> int:
        """The sum of the charges."""
        return sum(charge.cost_nusd for charge in self.charges)

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (self.clock.monotonic() - self.started) * 1000

    @property
    def overhead_ms(self) -> float:
        """Milliseconds since the request arrived in which no model was waited for."""
        return max(self.elapsed_ms - self.engine_s * 1000, 0.0)

    def answered(
        self, served: Served, tier: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Note whose answer is sent, and how long it is."""
        self.served, self.tier = served, tier
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    def charge(
        self,
        served: Served,
        prompt_tokens: int,
        completion_tokens: int,
        latency_ms: float,
        reason: str,
        kind: ChargeKind = "generation",
    ) -> None:
        """Add the price of one attempt, successful or wasted."""
        price = served.price.nano_usd(prompt_tokens, completion_tokens)
        self._add(
            kind,
            tier=served.tier,
            model=served.model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_nusd=price,
            latency_ms=latency_ms,
            reason=reason,
        )

    def reuse(self, entry: Entry) -> None:
        """Answer with what is kept, or with what another request is getting right now."""
        answer = entry.answer
        kind, why = _REUSES[self.cache]
        self.degraded, self.confidence = entry.degraded, entry.confidence
        self._free(entry.served, kind, answer.prompt_tokens, answer.completion_tokens, why)

    def ruled(self, prompt_tokens: int, completion_tokens: int, why: str) -> None:
        """Answer by a rule of the endpoint, without any model."""
        self.reasons.append(why)
        self.tier, self.prompt_tokens, self.completion_tokens = 0, prompt_tokens, completion_tokens
        self._add(
            "rule",
            tier=0,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            reason=why,
        )

    def embedded(self, served: Served, prompt_tokens: int, computed: bool) -> None:
        """Answer with embeddings, or with what they were good for; free unless `computed`."""
        if computed:
            self.answered(served, served.tier, prompt_tokens, 0)
        else:
            self._free(served, "cache", prompt_tokens, 0, "all texts were embedded before")

    def found_before(self, served: Served, prompt_tokens: int) -> None:
        """Answer with what a search found before, or finds for another request right now."""
        kind: ChargeKind = "shared" if self.cache == "shared" else "cache"
        why = "shared with" if kind == "shared" else "found before by"
        self._free(served, kind, prompt_tokens, 0, f"{why} the same search")

    def _free(
        self, served: Served, kind: ChargeKind, prompt_tokens: int, completion_tokens: int, why: str
    ) -> None:
        self.reasons.append(why)
        self.answered(served, 0, prompt_tokens, completion_tokens)
        self._add(
            kind,
            tier=0,
            model=served.model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            reason=why,
        )

    def charge_refusal(self, reason: str) -> None:
        """Add the free charge of a request that no model was asked for."""
        self._add("refusal", reason=reason)

    def _add(
        self,
        kind: ChargeKind,
        *,
        reason: str,
        tier: int | None = None,
        model: str | None = None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cost_nusd: int = 0,
        latency_ms: float = 0.0,
    ) -> None:
        seq = len(self.charges)
        self.charges.append(
            ChargeRecord(
                charge_id=f"{self.request_id}-{seq}",
                request_id=self.request_id,
                seq=seq,
                created_at=self.created_at,
                team=self.key.team,
                endpoint=self.endpoint,
                kind=kind,
                tier=tier,
                model=model,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cost_nusd=cost_nusd,
                latency_ms=latency_ms,
                reason=reason,
            )
        )

    def record(self, status: Status, http_status: int, error: str | None) -> RequestRecord:
        """The request as the ledger keeps it."""
        served = self.served
        return RequestRecord(
            request_id=self.request_id,
            created_at=self.created_at,
            team=self.key.team,
            endpoint=self.endpoint,
            key_id=self.key.key_id,
            status=status,
            http_status=http_status,
            tier=self.tier,
            model=served.model if served else None,
            model_version=served.version if served else None,
            cache=self.cache,
            degraded=self.degraded,
            confidence=self.confidence,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost_nusd=self.cost_nusd,
            top_tier_nusd=self.top_price.nano_usd(self.prompt_tokens, self.completion_tokens),
            latency_ms=self.elapsed_ms,
            overhead_ms=self.overhead_ms,
            reasons=tuple(self.reasons),
            error=error,
            tags=self.tags,
        )

    def headers(self, *, final: bool = True) -> dict[str, str]:
        """The `x-factory-*` headers; without cost and overhead while those still grow."""
        headers = {
            "x-factory-request-id": self.request_id,
            "x-factory-tier": "" if self.tier is None else str(self.tier),
            "x-factory-model": _plain(self.served.label) if self.served else "",
            "x-factory-cache": self.cache,
            "x-factory-route-reason": _plain("; ".join(self.reasons)),
            "x-factory-degraded": "true" if self.degraded else "false",
        }
        headers |= self.told
        if final:
            headers["x-factory-cost-usd"] = usd(self.cost_nusd)
            headers["x-factory-overhead-ms"] = f"{self.overhead_ms:.3f}"
        return headers

    def figures(self) -> bytes:
        """The same facts as one JSON object, for the end of a stream."""
        return to_json(
            {
                "request_id": self.request_id,
                "tier": self.tier,
                "model": self.served.label if self.served else None,
                "cost_usd": usd(self.cost_nusd),
                "cache": self.cache,
                "degraded": self.degraded,
                "route_reason": "; ".join(self.reasons),
                "overhead_ms": round(self.overhead_ms, 3),
            }
        )


def _plain(text: str) -> str:
    """`text` as a header may carry it: printable ASCII, of bounded length."""
    if not (text.isascii() and text.isprintable()):
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= _HEADER_LENGTH else text[: _HEADER_LENGTH - 3] + "..."


Outcome = Literal["ok", "refused", "error"]


async def settle(
    journey: Journey,
    recorder: Recorder,
    status: Outcome,
    http_status: int,
    error: str | None = None,
) -> None:
    """Record the request and its charges; they are durable when this returns.

    Raises `ApiError` 503 when the ledger does not take them: no answer may be sent uncharged.
    """
    if not journey.charges:
        journey.charge_refusal(error or "no model was asked")
    record = journey.record(status, http_status, error)
    journey.handed_over = True
    spent = sum(charge.prompt_tokens + charge.completion_tokens for charge in journey.charges)
    for correct in journey.after:
        correct(spent if record.tier else 0)
    try:
        await recorder.record(record, journey.charges)
    except LedgerError as problem:
        _log.error("request %s is not in the ledger: %s", journey.request_id, problem)
        raise unavailable(
            "the ledger cannot record this request, so its answer is withheld; try again soon"
        ) from problem

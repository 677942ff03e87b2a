"""What the ledger holds, as frozen values: requests, charges, promotions.

    request = RequestRecord(request_id="r1", created_at=now, team="support", endpoint="helpdesk",
                            status="ok", http_status=200, tier=1, model="smollm2-135m",
                            cost_nusd=1200, top_tier_nusd=90_000, reasons=("short prompt",))
    charge = ChargeRecord(charge_id="c1", request_id="r1", seq=0, created_at=now, team="support",
                          endpoint="helpdesk", tier=1, model="smollm2-135m", kind="generation",
                          cost_nusd=1200)

Money is an integer of nano-dollars (`*_nusd`), time is UTC, durations are milliseconds. A value
is checked and put in its stored form when it is made, so that what is read back is equal to what
was written. Text is made storable in every database instead of being refused: NUL and lone
surrogates are escaped, names are cut at 200 characters and prose at 4,000. Thus nothing a client
sends can make its request unaccountable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from factory.ledger.errors import LedgerError
from factory.ledger.text import NAME_LENGTH, PROSE_LENGTH, stored

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Status = Literal["ok", "refused", "error"]
CacheUse = Literal["hit", "semantic", "shared", "miss", "off"]
"""`hit`: the same question was answered before; `semantic`: one that means the same; `shared`: the
same question was being answered; `miss`: asked for nothing; `off`: not asked."""
ChargeKind = Literal["cache", "rule", "shared", "generation", "embedding", "refusal"]
"""`cache` and `shared` are answers of tier 0, exact and semantic hits or a computation in flight
that another request pays for; `refusal` is a request that no model was asked for."""
Action = Literal["promote", "rollback", "refuse"]

_PROSE = {"error", "reason", "reasons"}
_IDS = {"request_id", "charge_id", "key_id"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "status": get_args(Status),
    "cache": get_args(CacheUse),
    "kind": get_args(ChargeKind),
    "action": get_args(Action),
}
_WHOLE = {"http_status", "tier", "seq", "prompt_tokens", "completion_tokens", "version", "previous"}
_MILLISECONDS = {"latency_ms", "overhead_ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request and what became of it. Raises `LedgerError` for values that make no sense."""

    request_id: str
    created_at: datetime
    team: str
    endpoint: str
    status: Status
    http_status: int
    key_id: str | None = None
    tier: int | None = None
    """The tier that answered; 0 for rules and caches, None when none did."""
    model: str | None = None
    model_version: str | None = None
    cache: CacheUse = "off"
    degraded: bool = False
    """True when a lower tier than wanted answered because a higher one could not."""
    confidence: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nusd: int = 0
    """The sum of the request's charges."""
    top_tier_nusd: int = 0
    """List price of the same tokens at the top tier, at the time of the request."""
    latency_ms: float = 0.0
    overhead_ms: float = 0.0
    """The part of the latency that was not spent waiting for a model."""
    reasons: Sequence[str] = ()
    """Why it was routed so, in order; stored as a tuple."""
    error: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """What its client calls it by (`metadata`), to report costs by."""

    def __post_init__(self) -> None:
        normalise(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRecord:
    """One part of a request's cost. Raises `LedgerError` for values that make no sense."""

    charge_id: str
    request_id: str
    seq: int
    """Position among the request's charges, from 0."""
    created_at: datetime
    team: str
    endpoint: str
    kind: ChargeKind
    tier: int | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nusd: int = 0
    latency_ms: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        normalise(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One decision about which version of a model is champion. Raises `LedgerError`."""

    created_at: datetime
    name: str
    action: Action
    version: int | None
    """The version that became champion, or was refused; None when nothing is champion any more."""
    previous: int | None = None
    """The champion before the decision."""
    actor: str = ""
    reasons: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    id: int | None = None
    """Position in the log; None until it is appended."""

    def __post_init__(self) -> None:
        normalise(self)


def check_entry(request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
    """Raise `LedgerError` unless `charges` are the charges of `request` and add up to its cost."""
    who = f"request '{request.request_id}'"
    if strangers := [c.charge_id for c in charges if c.request_id != request.request_id]:
        raise LedgerError(f"charge '{strangers[0]}' does not belong to {who}; set its request_id")
    if sorted(charge.seq for charge in charges) != list(range(len(charges))):
        raise LedgerError(f"the charges of {who} must be numbered 0, 1, 2 … in seq")
    if any((c.team, c.endpoint) != (request.team, request.endpoint) for c in charges):
        raise LedgerError(f"the charges of {who} must name its own team and endpoint")
    total = sum(charge.cost_nusd for charge in charges)
    if total != request.cost_nusd:
        raise LedgerError(
            f"the charges of {who} add up to {total} nano-dollars but its cost_nusd is "
            f"{request.cost_nusd}; make them equal"
        )


def normalise(record: DataclassInstance) -> None:
    """Put each field of a frozen record in its stored form, judged by the field's name.

    Raises `LedgerError` for a value that makes no sense.
    """
    for name, form in _forms(type(record)):
        value = getattr(record, name)
        kept = form(name, value)
        if kept is not value:
            object.__setattr__(record, name, kept)


Form = Callable[[str, Any], Any]
"""The stored form of a field's value, by the field's name and the value."""


@cache
def _forms(kind: type[DataclassInstance]) -> tuple[tuple[str, Form], ...]:
    """The fields of a kind of record with their forms, found once: this runs for every request."""
    return tuple((item.name, _form(item.name)) for item in fields(kind))


def _form(name: str) -> Form:
    known: dict[str, Form] = {
        "created_at": _instant,
        "metrics": _plain,
        "tags": _tags,
        "reasons": _reasons,
        "confidence": _finite,
    }
    if name in known:
        return known[name]
    if name in _CHOICES:
        return _choice
    if name in _IDS:
        return _id
    if name.endswith("_nusd") or name in _WHOLE:
        return _whole
    if name in _MILLISECONDS:
        return _finite
    return _prose if name in _PROSE else _name


def _instant(name: str, value: Any) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise LedgerError(f"{name} must be a datetime with a time zone, not {value!r}")
    return value.astimezone(UTC)


def _choice(name: str, value: Any) -> Any:
    if value not in _CHOICES[name]:
        raise LedgerError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
    return value


def _id(name: str, value: Any) -> Any:
    if value is not None and (not value or stored(str(value), NAME_LENGTH) != value):
        raise LedgerError(
            f"{name} must be 1 to {NAME_LENGTH} storable characters, not {value[:50]!r}"
        )
    return value


def _tags(name: str, value: Mapping[Any, Any]) -> dict[str, str]:
    return {
        stored(str(key), NAME_LENGTH): stored(str(tag), PROSE_LENGTH) for key, tag in value.items()
    }


def _reasons(name: str, value: Sequence[Any]) -> tuple[str, ...]:
    return tuple(stored(str(reason), PROSE_LENGTH) for reason in value)


def _prose(name: str, value: Any) -> Any:
    return stored(value, PROSE_LENGTH) if isinstance(value, str) else value


def _name(name: str, value: Any) -> Any:
    return stored(value, NAME_LENGTH) if isinstance(value, str) else value


def _whole(name: str, value: Any) -> int | None:
    if value is None and name in {"tier", "version", "previous"}:
        return None
    largest = 2**63 if name.endswith("_nusd") else 2**31
    if type(value) is not int or not 0 <= value < largest:
        raise LedgerError(f"{name} must be an integer from 0 to {largest - 1}, not {value!r}")
    return value


def _finite(name: str, value: Any) -> float | None:
    if value is None and name == "confidence":
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise LedgerError(f"{name} must be a finite number, not {value!r}")
    return value if isinstance(value, float) else float(value)


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LedgerError(f"{name} must be plain JSON without NaN: {error}") from error

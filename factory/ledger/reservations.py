"""Money held for requests in progress: reserved before the work, released when it is settled.

    wanted = Reservation(request_id="r1", created_at=now, team="support", endpoint="helpdesk",
                         key_id="key-1", amount_nusd=1_500, budgets=budgets)
    grant = await writer.reserve(wanted)     # again with a larger amount before the next attempt
    await writer.record(request, charges)    # charges what it really cost, gives the rest back

A reservation belongs to a holder, the gateway process that made it. Holders beat; what a silent
one held comes back. Its request then has no row in `requests`, only an event in the audit log:
rows never change, and a holder that was merely slow may still settle, which then counts in full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select
from sqlalchemy.sql.dml import ReturningDelete

from factory.config import Budget
from factory.ledger import alerts, spend
from factory.ledger.alerts import Alert
from factory.ledger.audit import Event
from factory.ledger.budgets import GRANTED, Grant, Standing, decide, standing
from factory.ledger.errors import LedgerError
from factory.ledger.records import RequestRecord, normalise
from factory.ledger.schema import HOLDERS, REQUESTS, RESERVATIONS
from factory.ledger.spend import Amounts, Place

BEAT = timedelta(seconds=5)
"""How often a holder beats while it holds anything."""

SILENCE = timedelta(seconds=20)
"""A holder that did not beat for so long is taken for dead. The processes' clocks must agree to a
few seconds, as they must for calendar windows anyway."""

SETTLED = Grant(
    granted=False, act="refuse", reasons=("the request is settled already; it cannot go on",)
)
"""The answer to a request that is in the ledger when it asks for money."""

LEASE = "lease-"
"""How the reservations begin that no request holds, but a gateway for requests to come."""

_CHUNK = 500


_NAMED = RESERVATIONS.c.request_id.in_(bindparam("names", expanding=True))
_OF_HOLDERS = RESERVATIONS.c.holder.in_(bindparam("names", expanding=True))
_HELD = select(RESERVATIONS).where(_NAMED)
_RELEASE = RESERVATIONS.delete().where(_NAMED).returning(*RESERVATIONS.c)
_REAP = RESERVATIONS.delete().where(_OF_HOLDERS).returning(*RESERVATIONS.c)
_RECORDED = select(REQUESTS.c.request_id).where(
    REQUESTS.c.request_id.in_(bindparam("names", expanding=True))
)
_GROW = (
    RESERVATIONS.update()
    .where(RESERVATIONS.c.request_id == bindparam("of"))
    .values(amount_nusd=bindparam("total"), holder=bindparam("by"), scopes=bindparam("bounded"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a request may cost at most. Raises `LedgerError` for values that make no sense."""

    request_id: str
    created_at: datetime
    """When the request arrived: it counts in the windows of this moment."""
    team: str
    endpoint: str
    key_id: str | None = None
    amount_nusd: int
    """All that the request may have cost once the attempt that is about to begin is over: its
    charges so far, and the most that the attempt can cost. Asking for the same again is free."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """The budgets of its scopes, by scope; `budgets.bounded` drops those without any limit."""
    approved: bool = False
    """A person allowed it: budgets that would ask for a review are passed over."""

    def __post_init__(self) -> None:
        normalise(self)
        if strangers := set(self.budgets) - set(self.scopes):
            raise LedgerError(
                f"the budget of {min(strangers)} does not bound request '{self.request_id}', "
                f"which counts in {', '.join(self.scopes)}"
            )

    @property
    def free(self) -> bool:
        """True when no budget can say no, so that nothing has to be held."""
        return not self.budgets or self.amount_nusd == 0

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes it counts in, bounded or not."""
        return spend.scopes(self.team, self.endpoint, self.key_id)


@dataclass(slots=True)
class Ruling:
    """What a batch of reservations led to."""

    grants: list[Grant] = field(default_factory=list)
    """One a reservation, in order."""
    alerts: list[Alert] = field(default_factory=list)
    """Alerts raised for the first time."""
    events: list[Event] = field(default_factory=list)
    """What the audit log is to keep."""


def reserve(
    connection: Connection, wanted: Sequence[Reservation], holder: str, now: datetime
) -> Ruling:
    """Hold what each of `wanted` asks for where it fits all its budgets; only under `spend.lock`.

    In order: a later one sees the earlier ones held. A request that is settled already gets
    nothing. Raises `LedgerError` when a request_id is held for another request.
    """
    names = {item.request_id for item in wanted}
    rows, over = held_rows(connection, names), _recorded(connection, names)
    amounts = opened(connection, wanted)
    totals = {name: row.amount_nusd for name, row in rows.items()}
    owners = {name: _owner(row) for name, row in rows.items()}
    changes: dict[Place, Amounts] = {}
    fresh: dict[str, Reservation] = {}
    ruling, full = Ruling(), []
    for item in wanted:
        if item.request_id in over:
            # Its caller left while it was asking, and was settled; nothing would release it.
            ruling.grants.append(SETTLED)
            continue
        if owners.setdefault(item.request_id, _owner(item)) != _owner(item):
            raise LedgerError(
                f"request '{item.request_id}' holds money for another team, endpoint, key or time; "
                "use a new request_id for a new request"
            )
        growth = item.amount_nusd - totals.get(item.request_id, 0)
        standings = standings_of(item, amounts)
        grant = GRANTED if item.free else decide(standings, growth, approved=item.approved)
        ruling.grants.append(grant)
        if not grant.granted:
            ruling.events.append(_refusal(item, grant, growth, now))
            full += [
                alerts.of(each, 1.0, now)
                for each in standings
                if (each.scope, each.window) == (grant.scope, grant.window)
            ]
        elif growth > 0 and not item.free:
            totals[item.request_id] = item.amount_nusd
            fresh[item.request_id] = item
            for place in spend.places(item.scopes, item.created_at):
                if place in amounts:
                    amounts[place] = amounts[place].plus(0, growth)
                    changes[place] = changes.get(place, Amounts()).plus(0, growth)
    _hold(connection, fresh, rows, holder)
    spend.add(connection, changes)
    ruling.alerts = alerts.keep_new(connection, full)
    return ruling


def settle(
    connection: Connection,
    fresh: Sequence[RequestRecord],
    settled: Collection[str],
    budgets: Mapping[str, Budget],
    now: datetime,
) -> list[Alert]:
    """Release what the requests `settled` held, and charge the `fresh` ones to their scopes.

    Only under `spend.lock`. `fresh` are those recorded for the first time in this transaction.
    Returns the alerts raised for the first time, for the scopes whose `budgets` are given.
    """
    changes = _spread(
        [
            *((row, 0, -row.amount_nusd) for row in _deleted(connection, _RELEASE, settled)),
            *((request, request.cost_nusd, 0) for request in fresh if request.cost_nusd),
        ]
    )
    if not changes:
        return []
    before = spend.load(connection, changes)
    spend.add(connection, {place: changes[place] for place in before})
    due = []
    for place, amounts in before.items():
        budget = budgets.get(place.scope)
        if budget is None or not changes[place].spent_nusd:
            continue
        limit = budget.limits_nusd.get(place.window)
        if limit is None:
            continue
        after = standing(place, amounts.plus(*changes[place]), limit, budget.at_limit)
        due += [alerts.of(after, part, now) for part in alerts.passed(after, budget.alert_at)]
    return alerts.keep_new(connection, due)


def beat(connection: Connection, holder: str, now: datetime) -> None:
    """Say that `holder` is alive."""
    row = {"holder": holder, "beat_at": now}
    change = HOLDERS.update().where(HOLDERS.c.holder == holder).values(beat_at=now)
    if not connection.execute(change).rowcount:
        connection.execute(HOLDERS.insert(), row)


def silent(connection: Connection, now: datetime) -> bool:
    """Whether some holder did not beat for `SILENCE`."""
    query = select(HOLDERS.c.holder).where(HOLDERS.c.beat_at < now - SILENCE).limit(1)
    return connection.scalar(query) is not None


def reap(connection: Connection, now: datetime) -> list[Event]:
    """Give back what silent holders held, and forget them; only under `spend.lock`.

    Returns the events of the requests that died with them, for the audit log.
    """
    dead = HOLDERS.delete().where(HOLDERS.c.beat_at < now - SILENCE).returning(HOLDERS.c.holder)
    holders = list(connection.scalars(dead))
    return _orphaned(
        connection,
        _REAP,
        holders,
        "reservation.reaped",
        "the gateway died before it settled this request",
        now,
    )


def abandon(connection: Connection, request_ids: Collection[str], now: datetime) -> list[Event]:
    """Give back what requests hold that will not be settled; only under `spend.lock`."""
    return _orphaned(
        connection,
        _RELEASE,
        request_ids,
        "reservation.abandoned",
        "the gateway could not settle this request",
        now,
    )


def leave(connection: Connection, holder: str) -> None:
    """Forget a holder that ends and holds nothing."""
    connection.execute(HOLDERS.delete().where(HOLDERS.c.holder == holder))


def _orphaned(
    connection: Connection,
    deletion: ReturningDelete[Any],
    names: Collection[str],
    action: str,
    reason: str,
    now: datetime,
) -> list[Event]:
    released = _deleted(connection, deletion, names)
    spend.add(connection, _spread((row, 0, -row.amount_nusd) for row in released))
    return [
        Event(
            created_at=now,
            actor="system",
            action="lease.returned" if row.request_id.startswith(LEASE) else action,
            subject=row.request_id,
            detail={
                "holder": row.holder,
                "team": row.team,
                "endpoint": row.endpoint,
                "key_id": row.key_id,
                "amount_nusd": row.amount_nusd,
                "arrived_at": row.created_at.isoformat(),
                "status": "error",
                "http_status": 503,
                "reason": reason,
            },
        )
        for row in released
    ]


def _deleted(
    connection: Connection, deletion: ReturningDelete[Any], names: Collection[str]
) -> list[Row[Any]]:
    return [row for part in _parts(names) for row in connection.execute(deletion, {"names": part})]


def _spread(
    moves: Iterable[tuple[RequestRecord | Row[Any], int, int]],
) -> dict[Place, Amounts]:
    """By how much each row of `spend` changes: for each request, what is spent and reserved."""
    sums: dict[tuple[str, str, str | None, datetime], Amounts] = {}
    for item, spent, reserved in moves:
        hour = spend.starts_at("hour", item.created_at)
        who = (item.team, item.endpoint, item.key_id, hour)
        sums[who] = sums.get(who, Amounts()).plus(spent, reserved)
    changes: dict[Place, Amounts] = {}
    for (team, endpoint, key_id, hour), amounts in sums.items():
        for place in spend.places(spend.scopes(team, endpoint, key_id), hour):
            changes[place] = changes.get(place, Amounts()).plus(*amounts)
    return changes


def opened(connection: Connection, wanted: Sequence[Reservation]) -> dict[Place, Amounts]:
    """The rows of `spend` that the reservations touch, the bounded ones made where missing."""
    touched: dict[Place, None] = {}
    needed: dict[Place, None] = {}
    for item in wanted:
        touched |= dict.fromkeys(spend.places(item.scopes, item.created_at))
        for scope, budget in item.budgets.items():
            for window in budget.limits_nusd:
                needed[spend.place(scope, window, item.created_at)] = None
    return spend.opened(connection, touched | needed, needed)


def standings_of(item: Reservation, amounts: Mapping[Place, Amounts]) -> list[Standing]:
    """How the budgets of a reservation stand, by the rows that `opened` found."""
    return [
        standing(place, amounts[place], limit, budget.at_limit)
        for scope, budget in item.budgets.items()
        for window, limit in budget.limits_nusd.items()
        for place in [spend.place(scope, window, item.created_at)]
    ]


def held_rows(connection: Connection, request_ids: Collection[str]) -> dict[str, Row[Any]]:
    """Those reservations that exist, by request."""
    return {
        row.request_id: row
        for part in _parts(request_ids)
        for row in connection.execute(_HELD, {"names": part})
    }


def _recorded(connection: Connection, request_ids: Collection[str]) -> set[str]:
    return {
        name
        for part in _parts(request_ids)
        for name in connection.scalars(_RECORDED, {"names": part})
    }


def _hold(
    connection: Connection,
    fresh: Mapping[str, Reservation],
    rows: Mapping[str, Row[Any]],
    holder: str,
) -> None:
    new = [
        {
            "request_id": item.request_id,
            "holder": holder,
            "created_at": item.created_at,
            "team": item.team,
            "endpoint": item.endpoint,
            "key_id": item.key_id,
            "amount_nusd": item.amount_nusd,
            "scopes": list(item.budgets),
        }
        for name, item in fresh.items()
        if name not in rows
    ]
    grown = [
        {"of": name, "total": item.amount_nusd, "by": holder, "bounded": list(item.budgets)}
        for name, item in fresh.items()
        if name in rows
    ]
    if new:
        connection.execute(RESERVATIONS.insert(), new)
    if grown:
        connection.execute(_GROW, grown)


def _refusal(item: Reservation, grant: Grant, amount_nusd: int, now: datetime) -> Event:
    return Event(
        created_at=now,
        actor=item.key_id or "anonymous",
        action=f"budget.{grant.act}",
        subject=item.request_id,
        detail={
            "scope": grant.scope,
            "window": grant.window,
            "amount_nusd": amount_nusd,
            "reasons": list(grant.reasons),
        },
    )


def _owner(item: Reservation | Row[Any]) -> tuple[datetime, str, str, str | None]:
    return item.created_at, item.team, item.endpoint, item.key_id


def _parts(names: Collection[str]) -> list[list[str]]:
    ordered = sorted(names)
    return [ordered[first : first + _CHUNK] for first in range(0, len(ordered), _CHUNK)]

"""The table `spend`: what each scope spent and holds in each calendar window, kept exact.

    with ledger.write() as connection:
        lock(connection)                       # first in the transaction
        rows = opened(connection, places)      # a missing row is added up from the ledger
        add(connection, {place: Amounts(1_500, -2_000)})
    reconcile(ledger)                          # []: every row is what the ledger adds up to

A row is a running sum over `requests`, `reservations` and, for teams, `job_charges`. It appears
when a budget first needs it, and from then on every settlement and reservation of its scope moves
it in the same transaction. All of these transactions take one lock, so that none can slip between
a row's adding up and its first change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, func, select

from factory.config import WINDOWS, Window
from factory.ledger.money import usd
from factory.ledger.schema import CHARGES, JOB_CHARGES, REQUESTS, RESERVATIONS, SPEND

if TYPE_CHECKING:
    from factory.ledger.store import Ledger

_LOCK = 0x7370656E64  # "spend" in ASCII: a key for PostgreSQL's advisory locks
_LOCKED = select(func.pg_advisory_xact_lock(_LOCK))
_CHUNK = 500


class Place(NamedTuple):
    """Which row: a scope in one calendar window."""

    scope: str
    window: Window
    starts_at: datetime


class Amounts(NamedTuple):
    """What a row holds, or by how much it changes."""

    spent_nusd: int = 0
    reserved_nusd: int = 0

    def plus(self, spent_nusd: int, reserved_nusd: int) -> Amounts:
        """The sum."""
        return Amounts(self.spent_nusd + spent_nusd, self.reserved_nusd + reserved_nusd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that is not what the ledger adds up to: a defect, or a hand in the database."""

    place: Place
    kept: Amounts
    """What the row says."""
    counted: Amounts
    """What charges and open reservations add up to."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; money as exact US dollars in text."""
        return {
            "scope": self.place.scope,
            "window": self.place.window,
            "starts_at": self.place.starts_at.isoformat(),
            "spent_usd": usd(self.kept.spent_nusd),
            "charged_usd": usd(self.counted.spent_nusd),
            "reserved_usd": usd(self.kept.reserved_nusd),
            "held_usd": usd(self.counted.reserved_nusd),
        }


def scopes(team: str, endpoint: str, key_id: str | None) -> tuple[str, ...]:
    """The scopes a request counts in."""
    found = (f"team:{team}", f"endpoint:{endpoint}")
    return found if key_id is None else (*found, f"key:{key_id}")


def starts_at(window: Window, moment: datetime) -> datetime:
    """The beginning, in UTC, of the calendar window that `moment` lies in."""
    moment = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if window == "hour":
        return moment
    moment = moment.replace(hour=0)
    if window == "week":
        return moment - timedelta(days=moment.weekday())
    return moment.replace(day=1) if window == "month" else moment


def ends_at(window: Window, start: datetime) -> datetime:
    """The end of the window that begins at `start`; the next one begins there."""
    if window == "month":
        return (start + timedelta(days=31)).replace(day=1)
    return start + timedelta(
        **{"hour": {"hours": 1}, "day": {"days": 1}, "week": {"days": 7}}[window]
    )


def place(scope: str, window: Window, moment: datetime) -> Place:
    """The row of `scope` for the `window` that `moment` lies in."""
    return Place(scope, window, starts_at(window, moment))


def places(found: Iterable[str], moment: datetime) -> list[Place]:
    """The rows, of every window, in which a request of `moment` counts for the scopes `found`."""
    hour = starts_at("hour", moment)
    return [Place(scope, window, start) for scope in found for window, start in _starts(hour)]


@lru_cache(64)
def _starts(hour: datetime) -> tuple[tuple[Window, datetime], ...]:
    return tuple((window, starts_at(window, hour)) for window in WINDOWS)


def lock(connection: Connection) -> None:
    """Keep other transactions that move money waiting until this one ends; call it first.

    SQLite's one write lock does this already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCKED)


_LOAD = select(SPEND).where(
    SPEND.c.scope.in_(bindparam("names", expanding=True)),
    SPEND.c.starts_at.in_(bindparam("starts", expanding=True)),
)


def load(connection: Connection, wanted: Collection[Place]) -> dict[Place, Amounts]:
    """Those of the `wanted` rows that exist."""
    found: dict[Place, Amounts] = {}
    starts = sorted({place.starts_at for place in wanted})
    names = sorted({place.scope for place in wanted})
    for first in range(0, len(names), _CHUNK):
        asked = {"names": names[first : first + _CHUNK], "starts": starts}
        for scope, window, start, spent, reserved in connection.execute(_LOAD, asked):
            found[Place(scope, window, start)] = Amounts(spent, reserved)
    # The query finds the first hour of a day for its day, and so on: keep what was asked for.
    return {place: found[place] for place in wanted if place in found}


def opened(
    connection: Connection, wanted: Collection[Place], needed: Collection[Place]
) -> dict[Place, Amounts]:
    """Those of the `wanted` rows that exist, and all `needed` ones: what is missing is made.

    Only under `lock`. A new row is added up from the requests and reservations of its window, so
    a budget that is configured in the middle of a month is exact from its first request on.
    """
    found = load(connection, wanted)
    missing = [place for place in dict.fromkeys(needed) if place not in found]
    if missing:
        made = {place: recomputed(connection, place) for place in missing}
        connection.execute(
            SPEND.insert(), [place._asdict() | made[place]._asdict() for place in missing]
        )
        found |= made
    return found


_ADD = (
    SPEND.update()
    .where(
        SPEND.c.scope == bindparam("of_scope"),
        SPEND.c.window == bindparam("of_window"),
        SPEND.c.starts_at == bindparam("of_start"),
    )
    .values(
        spent_nusd=SPEND.c.spent_nusd + bindparam("spent"),
        reserved_nusd=SPEND.c.reserved_nusd + bindparam("reserved"),
    )
)


def add(connection: Connection, changes: Mapping[Place, Amounts]) -> None:
    """Add to rows that exist; only under `lock`."""
    rows = [
        {
            "of_scope": place.scope,
            "of_window": place.window,
            "of_start": place.starts_at,
            "spent": change.spent_nusd,
            "reserved": change.reserved_nusd,
        }
        for place, change in sorted(changes.items())
        if any(change)
    ]
    if rows:
        connection.execute(_ADD, rows)


def recomputed(connection: Connection, place: Place) -> Amounts:
    """What a row should hold, by adding up its requests and its open reservations."""
    amounts = [
        connection.scalar(select(func.sum(column)).where(*_inside(column.table, place)))
        for column in (REQUESTS.c.cost_nusd, RESERVATIONS.c.amount_nusd)
    ]
    spent, reserved = (int(amount or 0) for amount in amounts)
    return Amounts(spent + _of_jobs(connection, place), reserved)


def _of_jobs(connection: Connection, place: Place) -> int:
    """What jobs were charged; only teams have jobs."""
    if not place.scope.startswith("team:"):
        return 0
    total = select(func.sum(JOB_CHARGES.c.cost_nusd)).where(*_inside(JOB_CHARGES, place))
    return int(connection.scalar(total) or 0)


def reconcile(ledger: Ledger) -> list[Difference]:
    """Every row that is not what charges and open reservations add up to; none is right.

    Reads the charges of all windows that have rows, so its price grows with the ledger.
    """
    differences = []
    with ledger.read() as connection:
        for row in connection.execute(select(SPEND).order_by(*SPEND.primary_key)).all():
            place = Place(row.scope, row.window, row.starts_at)
            kept = Amounts(row.spent_nusd, row.reserved_nusd)
            charged = connection.scalar(
                select(func.sum(CHARGES.c.cost_nusd))
                .join(REQUESTS)
                .where(*_inside(REQUESTS, place))
            )
            _, reserved = recomputed(connection, place)
            counted = Amounts(int(charged or 0) + _of_jobs(connection, place), reserved)
            if kept != counted:
                differences.append(Difference(place=place, kept=kept, counted=counted))
    return differences


def _inside(table: Any, place: Place) -> list[ColumnElement[bool]]:
    kind, _, name = place.scope.partition(":")
    column = table.c[{"key": "key_id"}.get(kind, kind)]
    return [
        column == name,
        table.c.created_at >= place.starts_at,
        table.c.created_at < ends_at(place.window, place.starts_at),
    ]

"""The ledger: requests and their charges, recorded once, never changed.

    ledger = open_ledger(settings.database_url)
    ledger.record(request, charges)
    request, charges = ledger.request("req-1")
    print(ledger.costs(since, until).as_dict())
    ledger.close()

Every method is safe from several threads. Writers in other processes may use the same database.
Errors are `LedgerError`, or its child `LedgerUnavailable` when the database does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Engine, Select, select
from sqlalchemy.exc import IntegrityError

from factory.config import Budget
from factory.ledger import alerts as notices
from factory.ledger import audit, costs, database, reservations, slices, spend
from factory.ledger.alerts import Alert
from factory.ledger.budgets import Grant
from factory.ledger.errors import LedgerError
from factory.ledger.leases import Wish
from factory.ledger.records import ChargeRecord, RequestRecord, check_entry
from factory.ledger.report import CostsReport
from factory.ledger.reservations import Reservation
from factory.ledger.schema import CHARGES, REQUESTS, within
from factory.ledger.success import HUMAN_NUSD_PER_HOUR

Entry = tuple[RequestRecord, Sequence[ChargeRecord]]
"""A request with its charges: what is recorded together or not at all."""

_CHUNK = 500

SETTLING_S = 2.0
"""A request is in the database so soon after its answer, unless the database is away."""
_request_values = attrgetter(*REQUESTS.c.keys())
_charge_values = attrgetter(*CHARGES.c.keys())


@dataclass(slots=True, kw_only=True)
class Batch:
    """What is written in one transaction: settlements, and reservations in their order."""

    entries: Sequence[Entry] = ()
    """Requests that are over, each with its charges."""
    wanted: Sequence[Reservation] = ()
    """Money to hold; what the entries release is there for it."""
    leases: Sequence[Wish] = ()
    """What to make of leases, once the entries are charged and before anything is held."""
    holder: str = ""
    """Who holds the money."""
    beats: bool = False
    """Whether to say, too, that the holder is alive."""
    held: Collection[str] | None = None
    """Those of the entries that may hold money; None when that is not known."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """Budgets by scope, for the alerts that settlements raise."""
    now: datetime | None = None
    """None takes the time of the newest request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What a batch led to."""

    grants: list[Grant]
    """One a reservation, in order."""
    totals: list[int]
    """What each lease holds now, in order."""
    alerts: list[Alert]
    """Alerts raised for the first time; tell people."""


def open_ledger(url: str) -> Ledger:
    """Open the ledger at a SQLAlchemy URL, and create or migrate its tables when needed.

    Safe when several processes open the same fresh database at once. Raises `LedgerError`.
    """
    engine = database.connect(url)
    try:
        database.migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return Ledger(engine)


class Ledger:
    """An open ledger; made by `open_ledger`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = database.writing(engine)
        self._reading = database.reading(engine)
        self._changes = database.Changes(engine)

    def changed(self) -> bool:
        """Whether anything may have been committed since the last call; cheap, from one thread."""
        return self._changes.any()

    def close(self) -> None:
        """Give the connections back."""
        self._changes.close()
        self._engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life. Raises `LedgerUnavailable`."""
        with self.read() as connection:
            connection.execute(select(1))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database."""
        with database.translated(self._engine), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or rolled back by any exception."""
        with database.translated(self._engine), self._writing.begin() as connection:
            yield connection

    def record(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Record a request with its charges; durable on return.

        Recording the same content again does nothing. Raises `LedgerError` when the request_id
        is taken by other content, or when the charges do not fit the request.
        """
        self.record_many([(request, charges)])

    def record_many(self, entries: Sequence[Entry]) -> None:
        """Record several requests in one transaction: all of them, or none and a `LedgerError`."""
        self.book(Batch(entries=entries))

    def book(self, batch: Batch) -> Booked:
        """Settle and reserve in one transaction: all of the batch, or none and a `LedgerError`.

        A request that is recorded for the first time releases what it held, is charged to the
        budgets of its scopes, and is sealed in the audit log.
        """
        for request, charges in batch.entries:
            check_entry(request, charges)
        with database.translated(self._engine):
            try:
                return self._book(batch, look=False)
            except IntegrityError:
                pass
            try:
                return self._book(batch, look=True)
            except IntegrityError:
                # Another process may have recorded the same between our look and our insert.
                return self._book(batch, look=True)

    def beat(
        self, holder: str, now: datetime, *, strays: Collection[str] = (), reaps: bool = False
    ) -> None:
        """Say that `holder` is alive, and give back what its requests `strays` hold.

        With `reaps`, what silent holders held is given back as well.
        """
        with self.write() as connection:
            spend.lock(connection)
            reservations.beat(connection, holder, now)
            events = reservations.abandon(connection, strays, now)
            if reaps:
                events += reservations.reap(connection, now)
            audit.seal(connection, events)

    def leave(self, holder: str, now: datetime, strays: Collection[str] = ()) -> None:
        """Forget `holder`, which ends, and give back what its requests `strays` hold."""
        with self.write() as connection:
            spend.lock(connection)
            events = reservations.abandon(connection, strays, now)
            reservations.leave(connection, holder)
            audit.seal(connection, events)

    def silent(self, now: datetime) -> bool:
        """Whether some holder of reservations seems dead, so that `beat` should reap."""
        with self.read() as connection:
            return reservations.silent(connection, now)

    def request(self, request_id: str) -> tuple[RequestRecord, list[ChargeRecord]] | None:
        """A request and its charges in order, or None when it is not recorded."""
        with self.read() as connection:
            return _load(connection, [request_id]).get(request_id)

    def settled(self, request_id: str) -> tuple[RequestRecord, list[ChargeRecord]]:
        """`request` for one that may just have been answered; looks again for `SETTLING_S`.

        Raises `LedgerError` when it is unknown after that.
        """
        until = time.monotonic() + SETTLING_S
        while (found := self.request(request_id)) is None:
            if time.monotonic() >= until:
                raise LedgerError(
                    f"the ledger has no request '{request_id}'; "
                    "the id stands in the answer's x-factory-request-id header"
                )
            time.sleep(SETTLING_S / 20)
        return found

    def requests(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[RequestRecord]:
        """Requests created from `since` up to, not including, `until`, oldest first."""
        query = select(REQUESTS).where(*within(since, until))
        query = query.order_by(REQUESTS.c.created_at, REQUESTS.c.request_id)
        for row in self._stream(query):
            yield RequestRecord(**row)

    def charges(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[ChargeRecord]:
        """The charges of the requests that `requests(since, until)` gives, in the same order."""
        query = select(CHARGES).join(REQUESTS).where(*within(since, until))
        query = query.order_by(REQUESTS.c.created_at, REQUESTS.c.request_id, CHARGES.c.seq)
        for row in self._stream(query):
            yield ChargeRecord(**row)

    def costs(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        human_nusd_per_hour: int = HUMAN_NUSD_PER_HOUR,
    ) -> CostsReport:
        """The cost report of a time range, added up inside the database.

        The same figures as `report.costs_report(ledger.requests(…), ledger.charges(…))`.
        """
        with self.read() as connection:
            return costs.costs(connection, since, until, human_nusd_per_hour)

    def _stream(self, query: Select[Any]) -> Iterator[dict[str, Any]]:
        with self.read() as connection:
            for row in connection.execution_options(yield_per=_CHUNK).execute(query):
                yield row._asdict()

    def _book(self, batch: Batch, *, look: bool) -> Booked:
        """One try. Without `look` all entries are taken for new, as nearly always they are."""
        # In one order everywhere, so that two writers never wait for each other in a ring.
        ordered = sorted(batch.entries, key=lambda entry: entry[0].request_id)
        settled = [request.request_id for request, _ in ordered]
        if batch.held is not None:
            settled = [name for name in settled if name in batch.held]
        paid = bool(settled) or any(request.cost_nusd for request, _ in ordered)
        times = [request.created_at for request, _ in ordered]
        times += [item.created_at for item in batch.wanted]
        times += [wish.of.created_at for wish in batch.leases]
        now = batch.now or max(times, default=None)
        alerts: list[Alert] = []
        ruling = reservations.Ruling()
        totals: list[int] = []
        with self._writing.begin() as connection:
            if paid or batch.wanted or batch.leases:
                spend.lock(connection)
            fresh = _unseen(connection, ordered) if look else ordered
            if fresh:
                connection.execute(REQUESTS.insert(), [_request(each) for each, _ in fresh])
            if rows := [_charge(charge) for _, charges in fresh for charge in charges]:
                connection.execute(CHARGES.insert(), rows)
            if now is not None and paid:
                requests = [request for request, _ in fresh]
                alerts = reservations.settle(connection, requests, settled, batch.budgets, now)
            if now is not None and batch.beats:
                reservations.beat(connection, batch.holder, now)
            if batch.leases:
                totals = slices.resize(connection, batch.leases, batch.holder)
            if now is not None and batch.wanted:
                ruling = reservations.reserve(connection, batch.wanted, batch.holder, now)
            alerts += ruling.alerts
            events = [audit.of_request(request, charges) for request, charges in fresh]
            events += ruling.events
            events += [notices.event(alert) for alert in alerts]
            audit.seal(connection, events)
        return Booked(grants=ruling.grants, totals=totals, alerts=alerts)


def _unseen(connection: Connection, ordered: Sequence[Entry]) -> list[Entry]:
    """Those entries that are not recorded yet. Raises `LedgerError` for other content."""
    seen = _load(connection, [request.request_id for request, _ in ordered])
    fresh: list[Entry] = []
    for request, charges in ordered:
        content = (request, sorted(charges, key=attrgetter("seq")))
        if request.request_id not in seen:
            seen[request.request_id] = content
            fresh.append(content)
        elif seen[request.request_id] != content:
            raise LedgerError(
                f"request '{request.request_id}' is already recorded with other content; "
                "the ledger never changes a row, so use a new request_id"
            )
    return fresh


def _load(
    connection: Connection, request_ids: Sequence[str]
) -> dict[str, tuple[RequestRecord, list[ChargeRecord]]]:
    found: dict[str, tuple[RequestRecord, list[ChargeRecord]]] = {}
    for start in range(0, len(request_ids), _CHUNK):
        ids = request_ids[start : start + _CHUNK]
        query = select(REQUESTS).where(REQUESTS.c.request_id.in_(ids))
        for row in connection.execute(query):
            found[row.request_id] = (RequestRecord(**row._asdict()), [])
    if found:
        for start in range(0, len(request_ids), _CHUNK):
            ids = request_ids[start : start + _CHUNK]
            of = select(CHARGES).where(CHARGES.c.request_id.in_(ids)).order_by(CHARGES.c.seq)
            for row in connection.execute(of):
                found[row.request_id][1].append(ChargeRecord(**row._asdict()))
    return found


def _request(request: RequestRecord) -> dict[str, Any]:
    return dict(zip(REQUESTS.c.keys(), _request_values(request), strict=True))


def _charge(charge: ChargeRecord) -> dict[str, Any]:
    return dict(zip(CHARGES.c.keys(), _charge_values(charge), strict=True))

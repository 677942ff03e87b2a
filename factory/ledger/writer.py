"""Recording and reserving from asyncio: many callers wait, one transaction serves them all.

    writer = LedgerWriter(ledger, budgets=configured(settings), on_alert=tell)
    await writer.start()                      # beats, and gives back what dead gateways held
    grant = await writer.reserve(reservation) # before each attempt
    await writer.record(request, charges)     # durable when it returns
    await writer.close()

While one transaction is being committed in a thread, further calls gather; the next transaction
takes them all (group commit). So one caller alone waits for no timer, and many share the price of
a commit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

from factory.config import Budget
from factory.ledger.alerts import Alert
from factory.ledger.budgets import GRANTED, Grant
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.keys import now
from factory.ledger.leases import Wish
from factory.ledger.records import ChargeRecord, RequestRecord, check_entry
from factory.ledger.reservations import BEAT, SILENCE, Reservation
from factory.ledger.store import Batch, Entry, Ledger

_log = logging.getLogger(__name__)

_Item = Entry | Reservation
_Outcome = Grant | Exception | None


class LedgerWriter:
    """Records and reserves for the callers of one event loop; one holder of reservations."""

    def __init__(
        self,
        ledger: Ledger,
        max_batch: int = 256,
        *,
        budgets: Mapping[str, Budget] | None = None,
        on_alert: Callable[[Alert], None] | None = None,
        holder: str | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """`budgets` by scope are those known from the start; each reservation adds its own.

        `on_alert` is called in the event loop, after the alert is durable. `holder` names this
        process among all that share the database; by default it is new each time.
        """
        self.holder = holder or f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._ledger = ledger
        self._max_batch = max_batch
        self._budgets = dict(budgets or {})
        self._on_alert = on_alert
        self._clock = clock
        self._waiting: deque[tuple[_Item, asyncio.Future[Any]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._task: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._held: set[str] = set()
        self._strays: set[str] = set()
        self.leased = False
        """Whether leases are held, so that it beats."""
        self._beat_at: datetime | None = None
        self._met_at: datetime | None = None
        self._meeting_since: datetime | None = None
        self._closed = False

    async def start(self) -> None:
        """Begin to beat, and to look for gateways that died; by itself with the first `reserve`.

        Needs no database: a gateway may start while it is down.
        """
        if self._beating is None and not self._closed:
            self._beating = asyncio.create_task(self._beats())

    def at_once(self, reservation: Reservation) -> bool:
        """Whether a reservation needs no database: only one that no budget bounds."""
        return reservation.free

    async def reserve(self, reservation: Reservation) -> Grant:
        """Hold money for a request before an attempt, where it fits all its budgets.

        Again, with a larger amount, before each further attempt; the same amount again changes
        nothing. A request without any budget is granted at once, without the database. What is
        held is released by `record`, which every request with a grant must reach, also when its
        caller is cancelled. Raises `LedgerError`, after which the attempt must not be made.
        """
        self._open()
        if reservation.free:
            return GRANTED
        await self.start()
        self._budgets.update(reservation.budgets)
        self._held.add(reservation.request_id)
        grant: Grant = await self._ask(reservation)
        return grant

    async def record(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Record a request with its charges; durable on return. Idempotent, as `Ledger.record`.

        Raises `LedgerError` when this record cannot be written; others are not affected by it,
        and what the request held is given back as soon as possible.
        A caller that is cancelled while it waits does not stop its record from being written.
        """
        self._open()
        check_entry(request, charges)
        await self._ask((request, tuple(charges)))

    async def move(self, entries: Sequence[Entry], leases: Sequence[Wish]) -> list[int]:
        """Charge what leases were spent for, and resize them, in one transaction.

        Returns what each lease holds now. An entry that the ledger refuses is logged and left out.
        Raises `LedgerUnavailable`, after which all of it must be moved again.
        """
        await self.start()
        for wish in leases:
            self._budgets.update(wish.of.budgets)
        alerts: list[Alert] = []
        totals: list[int] = await self._run(self._moved, entries, leases, alerts)
        self.leased = any(totals) or (self.leased and not leases)
        self._tell(alerts)
        return totals

    async def flush(self) -> None:
        """Return when everything recorded is in the database, where it is already."""

    async def close(self) -> None:
        """Write everything that waits, give back what is still held, then stop.

        Calling it again does nothing.
        """
        self._closed = True
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def beat(self) -> None:
        """One look around, as it happens every few seconds; raises `LedgerError`.

        Beats while anything is held, and gives back what gateways that died held. Others are
        only judged after `SILENCE` of unbroken contact with the database: while it was down, or
        this process stood still, nobody could be heard.
        """
        time = self._clock()
        dead = await self._run(self._ledger.silent, time)
        if self._met_at is None or time - self._met_at > 2 * BEAT:
            self._meeting_since = time
        self._met_at = time
        reaps = dead and self._meeting_since is not None and time - self._meeting_since >= SILENCE
        strays = frozenset(self._strays)
        if self._held or self.leased or strays or reaps:
            await self._run(self._move, time, strays, reaps)
            self._strays -= strays

    async def _end(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
        if self._task is not None:
            await self._task
        if self._beat_at is not None:
            left = self._held | self._strays
            try:
                await self._run(self._ledger.leave, self.holder, self._clock(), left)
            except LedgerError as error:
                _log.warning("what this gateway held comes back a little later: %s", error)
        self._thread.shutdown()

    def holds(self, request_id: str) -> bool:
        """Whether a request reserved money here that `record` will release."""
        return request_id in self._held

    @property
    def heard_at(self) -> datetime | None:
        """When the database last heard that this process is alive."""
        return self._beat_at

    def _moved(
        self, entries: Sequence[Entry], leases: Sequence[Wish], alerts: list[Alert]
    ) -> list[int]:
        time = self._clock()
        beats = bool(leases) and (self._beat_at is None or time - self._beat_at >= BEAT)
        batch = Batch(
            entries=entries,
            leases=leases,
            holder=self.holder,
            beats=beats,
            held=(),
            budgets=self._budgets,
            now=time,
        )
        try:
            booked = self._ledger.book(batch)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            if len(entries) <= 1 and not leases:
                _log.error("a journalled request is not in the ledger: %s", error)
                return []
            for entry in entries:
                self._moved([entry], (), alerts)
            return self._moved((), leases, alerts) if entries else [0] * len(leases)
        if beats:
            self._beat_at = time
        alerts += booked.alerts
        return booked.totals

    def _move(self, time: datetime, strays: frozenset[str], reaps: bool) -> None:
        self._ledger.beat(self.holder, time, strays=strays, reaps=reaps)
        self._beat_at = time

    async def _beats(self) -> None:
        while True:
            try:
                await self.beat()
            except LedgerError as error:
                _log.warning("the ledger did not hear this gateway: %s", error)
            except Exception:
                # A gateway that stops beating is taken for dead: go on, whatever it was.
                _log.exception("beating failed")
            await asyncio.sleep(BEAT.total_seconds())

    def _open(self) -> None:
        if self._closed:
            raise LedgerError("the ledger's writer is closed, the gateway is going down; ask again")

    async def _ask(self, item: _Item) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await done

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def _drain(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(size)]
            items = [item for item, _ in batch]
            outcomes: Sequence[_Outcome]
            alerts: list[Alert] = []
            try:
                outcomes = await self._run(self._write, items, alerts)
            except Exception as error:
                # A defect here must reach the callers: they would otherwise wait for ever.
                outcomes = [error] * size
            except asyncio.CancelledError:
                for _, done in (*batch, *self._waiting):
                    done.cancel()
                self._waiting.clear()
                raise
            for (item, done), outcome in zip(batch, outcomes, strict=True):
                self._note(item, outcome)
                if done.done():
                    continue
                if isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)
            self._tell(alerts)

    def _note(self, item: _Item, outcome: _Outcome) -> None:
        """Remember what is held: a settled request holds nothing, a failed one is given back."""
        if isinstance(item, Reservation):
            return
        name = item[0].request_id
        if name in self._held:
            self._held.discard(name)
            if isinstance(outcome, Exception):
                self._strays.add(name)

    def _tell(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            _log.warning("budget: %s", alert.sentence)
            if self._on_alert is not None:
                try:
                    self._on_alert(alert)
                except Exception:
                    _log.exception("telling about a budget failed; the alert is in the ledger")

    def _write(self, items: list[_Item], alerts: list[Alert]) -> list[_Outcome]:
        """One outcome an item: together, and one by one only when they do not go together."""
        wanted = [item for item in items if isinstance(item, Reservation)]
        entries = [item for item in items if not isinstance(item, Reservation)]
        time = self._clock()
        beats = bool(wanted) and (self._beat_at is None or time - self._beat_at >= BEAT)
        batch = Batch(
            entries=entries,
            wanted=wanted,
            holder=self.holder,
            beats=beats,
            held=self._held,
            budgets=self._budgets,
            now=time,
        )
        try:
            booked = self._ledger.book(batch)
        except LedgerUnavailable as error:
            return [LedgerUnavailable(str(error)) for _ in items]
        except LedgerError as error:
            if len(items) == 1:
                return [error]
            return [self._write([item], alerts)[0] for item in items]
        if beats:
            self._beat_at = time
        alerts += booked.alerts
        grants = iter(booked.grants)
        return [next(grants) if isinstance(item, Reservation) else None for item in items]

"""`Till`: a gateway's own small change. It grants and settles without waiting for the database.

    till = Till(writer, Journal(folder, writer.holder))
    await till.start()                       # and charges what gateways that died left in journals
    grant = await till.reserve(reservation)  # from a lease, in memory
    await till.record(request, charges)      # in the journal, durable against the process's death
    await till.flush()                       # ... and in the database
    await till.close()

Granting takes from `leases`; near a limit, where a lease gives nothing, it is an exact reservation
in the database, and such a request is settled there too. What is in the journal is moved into the
database in the background: as soon as nothing is being answered, and at the latest after
`LATEST_S`, together with everything else that waits. After a crash the next gateway with the same
folder moves what is left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from cachetools import TTLCache

from factory.ledger.budgets import GRANTED, Grant
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.journal import Journal, left_behind
from factory.ledger.keys import now
from factory.ledger.leases import Lease, Scope, scope_of
from factory.ledger.records import ChargeRecord, RequestRecord, check_entry
from factory.ledger.reservations import BEAT, LEASE, SILENCE, Reservation
from factory.ledger.store import Entry
from factory.ledger.writer import LedgerWriter

_log = logging.getLogger(__name__)

QUIET_S = 0.02
"""Without a request in progress, what waits is moved after so long."""

LATEST_S = 1.0
"""With requests in progress it waits for so long, so that many share one transaction: each takes
some milliseconds of a core from the engines."""

FULL = 128
"""Entries that are moved at once, without waiting any longer."""

IDLE_S = 5.0
"""A lease that was not used for so long is returned."""

BARREN_S = 1.0
"""After a lease gave nothing, requests ask the database themselves for so long."""

AMPLE = 256
"""While so many entries wait, callers wait too: no answer is faster than the ledger."""

MOST = 20_000
"""Entries that may wait while the database does not answer; more are refused."""


class Till:
    """Grants and settles for the callers of one event loop, in front of one `LedgerWriter`."""

    def __init__(
        self,
        writer: LedgerWriter,
        journal: Journal,
        *,
        clock: Callable[[], datetime] = now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._clock = clock
        self._monotonic = monotonic
        self._numbers = count()
        self._leases: dict[Scope, Lease] = {}
        self._of: dict[str, Lease] = {}
        self._barren: TTLCache[Scope, bool] = TTLCache(4096, BARREN_S, timer=monotonic)
        self._waiting: list[Entry] = []
        self._sealed: list[Path] = []
        self._since = 0.0
        self._last = 0.0
        self._problem: str = ""
        self._moving = asyncio.Lock()
        self._calm = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None
        self._relieving: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._inheriting: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Entries in the journal that are not in the database yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Begin to beat, and to look for the journals of gateways that died."""
        await self._writer.start()
        if self._inheriting is None:
            await self._inherit()
            self._inheriting = asyncio.create_task(self._inheriting_on())

    def at_once(self, reservation: Reservation) -> bool:
        """Hold money from a lease that has it; False, with nothing held, when none has.

        Raises `LedgerUnavailable` while the database does not answer.
        """
        self._open()
        if reservation.free:
            return True
        lease = self._of.get(reservation.request_id) or self._leases.get(scope_of(reservation))
        return lease is not None and self._granted(lease, reservation)

    async def reserve(self, reservation: Reservation) -> Grant:
        """Hold money before an attempt, as `LedgerWriter.reserve`."""
        if self.at_once(reservation):
            return GRANTED
        name, scope = reservation.request_id, scope_of(reservation)
        if name not in self._of and scope in self._barren:
            return await self._writer.reserve(reservation)
        if name not in self._of and self._granted(
            await self._larger(scope, reservation), reservation
        ):
            return GRANTED
        # Near a limit: what leases do not need is given back, and the database decides.
        self._barren[scope] = True
        if any(lease.free_nusd for lease in self._leases.values()):
            await self._move(returns=True)
        grant = await self._writer.reserve(reservation)
        if grant.granted and (held := self._of.pop(name, None)) is not None:
            held.release(name)
        return grant

    async def record(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Settle a request; its charges survive this process when this returns.

        Raises `LedgerError` when they cannot be kept: no answer may be sent then.
        """
        self._open()
        lease = self._of.pop(request.request_id, None)
        try:
            check_entry(request, charges)
            if lease is None and self._writer.holds(request.request_id):
                await self._writer.record(request, charges)
                return
            if len(self._waiting) >= AMPLE and not self._problem:
                await self._relief()
            if len(self._waiting) >= MOST:
                raise LedgerUnavailable(self._problem or "too many settlements wait")
            self._journal.append(request, charges)
        except BaseException:
            if lease is not None:
                lease.release(request.request_id)
            raise
        if lease is not None:
            lease.settle(request.request_id, request.cost_nusd)
        self._last = self._monotonic()
        if not self._waiting:
            self._since = self._last
        self._waiting.append((request, tuple(charges)))
        if len(self._waiting) >= FULL:
            self._calm.set()
        elif not self._of:
            self._listen()
        self._wake()

    async def flush(self) -> None:
        """Return when everything recorded so far is in the database. Raises `LedgerError`."""
        if self._waiting or self._moving.locked():
            await self._move()

    async def close(self) -> None:
        """Move everything, return every lease, and close the writer; idempotent."""
        self._closed = True
        for task in (self._task, self._inheriting):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._task = self._inheriting = None
        try:
            await self._move(returns=True)
        except LedgerError as error:
            _log.warning("the journal keeps what the ledger does not take: %s", error)
        self._journal.close()
        await self._writer.close()

    def _open(self) -> None:
        if self._closed:
            raise LedgerError("the ledger's till is closed, the gateway is going down; ask again")

    def _granted(self, lease: Lease, wanted: Reservation) -> bool:
        """Whether the lease covers the request; not while others may take this process for dead."""
        if self._problem:
            raise LedgerUnavailable(self._problem)
        heard = self._writer.heard_at
        if heard is None or self._clock() - heard > SILENCE - 2 * BEAT:
            return False
        if not lease.grant(wanted.request_id, wanted.amount_nusd):
            return False
        lease.used_at = self._monotonic()
        self._of[wanted.request_id] = lease
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        return True

    async def _larger(self, scope: Scope, wanted: Reservation) -> Lease:
        """The lease of a scope, made or grown in the database for `wanted`."""
        lease = self._leases.get(scope)
        if lease is None:
            name = f"{LEASE}{self._writer.holder}-{next(self._numbers)}"
            lease = self._leases[scope] = Lease(name=name, of=wanted)
        lease.used_at = self._monotonic()
        await self._move({lease.name: wanted.amount_nusd})
        return lease

    def _wake(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._background())

    async def _background(self) -> None:
        """Move what waits when it is quiet or late, then give idle leases back."""
        while self._waiting or self._leases:
            await self._pause()
            if not self._due():
                continue
            try:
                await self._move()
            except LedgerError as error:
                _log.warning("settlements wait in the journal: %s", error)
                await asyncio.sleep(LATEST_S)
            except Exception:
                _log.exception("moving settlements failed; they wait in the journal")
                await asyncio.sleep(LATEST_S)

    async def _pause(self) -> None:
        """Return when something may be due; it does not look again and again meanwhile."""
        if not self._waiting:
            await asyncio.sleep(IDLE_S / 10)
            return
        if self._problem:
            await asyncio.sleep(QUIET_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._since + LATEST_S - self._monotonic()):
                await self._calm.wait()
        self._calm.clear()

    def _listen(self) -> None:
        """Notice when nothing has been answered for `QUIET_S` and nothing is in progress."""
        if self._quiet is None:
            self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._heard)

    def _heard(self) -> None:
        self._quiet = None
        if self._of or not self._waiting:
            return
        if self._monotonic() - self._last >= QUIET_S / 2:
            self._calm.set()
        else:
            self._listen()

    def _due(self) -> bool:
        if self._problem:
            return True
        time = self._monotonic()
        if self._waiting:
            quiet = not self._of and time - self._last >= QUIET_S / 2
            return quiet or len(self._waiting) >= FULL or time - self._since >= LATEST_S
        return any(self._unused(lease) for lease in self._leases.values())

    def _unused(self, lease: Lease) -> bool:
        return self._monotonic() - lease.used_at >= IDLE_S

    async def _move(self, least: Mapping[str, int] | None = None, *, returns: bool = False) -> None:
        """One transaction; it runs to its end even if its caller is cancelled. `LedgerError`."""
        await asyncio.shield(asyncio.create_task(self._transact(least or {}, returns)))

    async def _relief(self) -> None:
        """Wait, together with all who wait, for one transaction."""
        if self._relieving is None or self._relieving.done():
            self._relieving = asyncio.create_task(self._transact({}, False))
        await asyncio.shield(self._relieving)

    async def _transact(self, least: Mapping[str, int], returns: bool) -> None:
        """Charge what waits, and resize the leases that changed."""
        async with self._moving:
            entries, self._waiting = self._waiting, []
            if sealed := self._journal.seal():
                self._sealed.append(sealed)
            leases = [
                lease
                for lease in self._leases.values()
                if returns or lease.consumed_nusd or lease.name in least or self._unused(lease)
            ]
            wishes = [
                lease.leave(least.get(lease.name, 0), returns=returns or self._unused(lease))
                for lease in leases
            ]
            totals: Sequence[int | None] = [None] * len(leases)
            try:
                if entries or wishes:
                    totals = await self._writer.move(entries, wishes)
                self._problem = ""
                entries = []
            except LedgerError as error:
                self._problem = str(error)
                raise
            finally:
                # What may be in the database or not is moved again, which then changes nothing.
                self._waiting[:0] = entries
                for lease, total in zip(leases, totals, strict=True):
                    lease.land(total)
                self._wake()
            while self._sealed:
                self._journal.drop(self._sealed.pop())
            self._leases = {scope: one for scope, one in self._leases.items() if not one.empty}

    async def _inherit(self) -> None:
        """Charge what gateways that died have left in their journals."""
        try:
            for segment, entries in left_behind(self._journal.folder):
                for first in range(0, len(entries), FULL):
                    await self._writer.move(entries[first : first + FULL], ())
                self._journal.drop(segment)
                _log.warning("charged %d requests of a gateway that died", len(entries))
        except (LedgerError, OSError) as error:
            _log.warning("journals of gateways that died wait: %s", error)

    async def _inheriting_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT.total_seconds())
            await self._inherit()

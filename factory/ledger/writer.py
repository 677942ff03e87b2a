"""Recording from asyncio: many callers wait, one transaction serves them all (group commit).

    writer = LedgerWriter(ledger)
    await writer.record(request, charges)     # durable when it returns
    await writer.close()

While one transaction is being committed in a thread, further calls gather; the next transaction
takes them all. So one caller alone waits for no timer, and many share the price of a commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.records import ChargeRecord, RequestRecord, check_entry
from factory.ledger.store import Entry, Ledger


class LedgerWriter:
    """Records for the callers of one event loop."""

    def __init__(self, ledger: Ledger, max_batch: int = 256) -> None:
        self._ledger = ledger
        self._max_batch = max_batch
        self._waiting: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def record(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Record a request with its charges; durable on return. Idempotent, as `Ledger.record`.

        Raises `LedgerError` when this record cannot be written; others are not affected by it.
        A caller that is cancelled while it waits does not stop its record from being written.
        """
        if self._closed:
            raise LedgerError("the ledger's writer is closed, the gateway is going down; ask again")
        check_entry(request, charges)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((request, tuple(charges)), done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        await done

    async def close(self) -> None:
        """Write everything that waits, then stop. Calling it again does nothing."""
        self._closed = True
        if self._task is not None:
            await asyncio.shield(self._task)
        self._thread.shutdown()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            size = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(size)]
            entries = [entry for entry, _ in batch]
            outcomes: Sequence[Exception | None]
            try:
                outcomes = await loop.run_in_executor(self._thread, self._write, entries)
            except Exception as error:
                # A defect here must reach the callers: they would otherwise wait for ever.
                outcomes = [error] * size
            except asyncio.CancelledError:
                for _, done in (*batch, *self._waiting):
                    done.cancel()
                self._waiting.clear()
                raise
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if done.done():
                    continue
                if outcome is None:
                    done.set_result(None)
                else:
                    done.set_exception(outcome)

    def _write(self, entries: list[Entry]) -> list[LedgerError | None]:
        """One outcome an entry: together, and one by one only when they do not go together."""
        try:
            self._ledger.record_many(entries)
        except LedgerUnavailable as error:
            return [LedgerUnavailable(str(error)) for _ in entries]
        except LedgerError as error:
            if len(entries) == 1:
                return [error]
            return [self._write([entry])[0] for entry in entries]
        return [None] * len(entries)

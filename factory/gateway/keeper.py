"""Writes what nobody waits for: answers that tier 0 keeps, and what the router learns from.

    keeper.answer(kept); keeper.sample(sample)    # returns at once
    await keeper.close()                          # everything is written

What is lost with a killed process is a cache hit and a lesson, never an answer or a charge.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from factory.ledger import answers, samples
from factory.ledger.answers import Answer as Kept
from factory.ledger.errors import LedgerError
from factory.ledger.samples import Sample
from factory.ledger.store import Ledger

_log = logging.getLogger(__name__)

GATHER_S = 1.0
"""Seconds in which entries gather before they are written together: each write takes a core from
whatever answers meanwhile."""

_BACKLOG = 10_000
"""Entries that may wait; beyond it the oldest are dropped, since they only save work."""

_TRIM_EVERY = 500
"""Answers after which what is too old or too much is removed."""


SAMPLES_KEPT = timedelta(days=180)
"""What is older teaches the router no more, and is forgotten."""


class Keeper:
    """Writes for one event loop, in a thread of its own."""

    def __init__(self, ledger: Ledger, max_answers: int, now: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._max_answers = max_answers
        self._now = now
        self._answers: deque[Kept] = deque(maxlen=_BACKLOG)
        self._samples: deque[Sample] = deque(maxlen=_BACKLOG)
        self._since_trim = _TRIM_EVERY
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def answer(self, kept: Kept) -> None:
        """Have an answer written soon."""
        self._answers.append(kept)
        self._begin()

    def sample(self, sample: Sample) -> None:
        """Have a sample written soon."""
        self._samples.append(sample)
        self._begin()

    async def close(self) -> None:
        """Write everything that waits, then stop."""
        self._closing.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._answers or self._samples:
            try:
                async with asyncio.timeout(GATHER_S):
                    await self._closing.wait()
            except TimeoutError:
                pass
            kept, learnt = list(self._answers), list(self._samples)
            self._answers.clear()
            self._samples.clear()
            try:
                await loop.run_in_executor(self._thread, self._write, kept, learnt)
            except LedgerError as error:
                _log.warning("%d answers were not kept: %s", len(kept), error)

    def _write(self, kept: list[Kept], learnt: list[Sample]) -> None:
        with self._ledger.write() as connection:
            answers.put_many(connection, kept)
            samples.keep_many(connection, learnt)
        self._since_trim += len(kept)
        if self._since_trim >= _TRIM_EVERY:
            answers.trim(self._ledger, self._now(), self._max_answers)
            samples.forget_before(self._ledger, self._now() - SAMPLES_KEPT)
            self._since_trim = 0

"""Identical requests in flight share one computation, streams too.

    flights: Flights[bytes, Answer] = Flights()
    with flights.join(key, start) as boarding:      # the first caller starts it, others get on
        async for item in boarding: ...             # from the first item on, however late one came
        answer = await boarding.result()            # an error reaches every passenger

`start` makes a coroutine, whose value is the result, or an async generator of items that ends with
`Landed(result)`. It runs in a task of its own: a passenger that leaves or is slow hurts nobody.
When the last one leaves, the computation is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEM_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Landed(Generic[Result]):
    """The last thing a stream yields: its result."""

    result: Result


class FlightCancelled(Exception):
    """The shared computation was stopped before its end, as at a shutdown."""


Start = Callable[[], AsyncGenerator[Item | Landed[Result], None] | Coroutine[Any, Any, Result]]
"""Makes the computation, in whose task it is called. However early everybody leaves, it runs up to
its first await, so that its own `finally` can account for it. What must not be interrupted, such
as a settlement, it shields itself: leaving can cancel it at any await."""


def weight(item: object) -> int:
    """Bytes an item is reckoned with: its length, or a flat 1,000 for what is not text."""
    return len(item) if isinstance(item, bytes | str) else _ITEM_BYTES


class _Flight(Generic[Item, Result]):
    """One computation, what it has yielded so far, and how many are on board."""

    __slots__ = (
        "error",
        "items",
        "key",
        "landed",
        "news",
        "over",
        "passengers",
        "task",
        "weight",
    )

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.items: list[Item] = []
        self.weight = 0
        self.passengers = 0
        self.over = False
        self.landed: Landed[Result] | None = None
        self.error: Exception | None = None
        self.news = asyncio.Event()
        self.task: asyncio.Task[None]

    def announce(self) -> None:
        """Wake everybody who waits now."""
        self.news.set()
        self.news.clear()


class Boarding(Generic[Item, Result]):
    """One passenger's place. `with` it: leaving is what lets the computation end early.

    It iterates over the items once, for one task.
    """

    __slots__ = ("_aboard", "_at", "_flight", "_flights", "leader")

    def __init__(
        self, flights: Flights[Item, Result], flight: _Flight[Item, Result], leader: bool
    ) -> None:
        self.leader = leader
        """This caller started the computation, so it is the one who pays for it."""
        self._flights = flights
        self._flight = flight
        self._at = 0
        self._aboard = True
        flight.passengers += 1

    def __aiter__(self) -> Boarding[Item, Result]:
        return self

    async def __anext__(self) -> Item:
        """The next item. Raises the computation's error after the items that came before it."""
        flight = self._flight
        while self._at == len(flight.items):
            if flight.over:
                self._outcome()
                raise StopAsyncIteration
            await flight.news.wait()
        self._at += 1
        return flight.items[self._at - 1]

    async def result(self) -> Result:
        """The result, when the computation has ended; items that were not taken are skipped.

        Raises the computation's error, as an exception of this passenger's own, or
        `FlightCancelled`.
        """
        while not self._flight.over:
            await self._flight.news.wait()
        return self._outcome().result

    def _outcome(self) -> Landed[Result]:
        flight = self._flight
        if flight.landed is not None:
            return flight.landed
        if flight.error is None:
            raise FlightCancelled("the shared computation was stopped before its end")
        raise _own(flight.error)

    def leave(self) -> None:
        """Get off; doing it twice does nothing."""
        if self._aboard:
            self._aboard = False
            self._flights._left(self._flight)

    def __enter__(self) -> Boarding[Item, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


class Flights(Generic[Item, Result]):
    """The computations in flight in one process, for use from one event loop."""

    def __init__(self, max_bytes: int = 1_000_000, weigh: Callable[[Item], int] = weight) -> None:
        """A flight whose kept items weigh more than `max_bytes` takes nobody more on board."""
        self._max_bytes = max_bytes
        self._weigh = weigh
        self._open: dict[bytes, _Flight[Item, Result]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Computations that have not ended."""
        return len(self._tasks)

    def __contains__(self, key: bytes) -> bool:
        """Whether a computation for `key` can be joined now."""
        return key in self._open

    def join(self, key: bytes, start: Start[Item, Result]) -> Boarding[Item, Result]:
        """A place on the computation for `key`, which `start` begins if there is none.

        `key` must tell apart whatever must not be shared, teams above all.
        """
        flight = self._open.get(key)
        if flight is not None:
            return Boarding(self, flight, leader=False)
        flight = self._open[key] = _Flight(key)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, start))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return Boarding(self, flight, leader=True)

    async def drain(self, grace_s: float | None = None) -> None:
        """Wait until every computation has ended; after `grace_s` seconds cancel those left."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in late:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _fly(self, flight: _Flight[Item, Result], start: Start[Item, Result]) -> None:
        try:
            flight.landed = await self._compute(flight, start())
        except Exception as error:
            flight.error = error
            if not flight.passengers:
                _log.exception("a shared computation failed after everybody had left")
        finally:
            flight.over = True
            self._shut(flight)
            flight.announce()

    async def _compute(
        self,
        flight: _Flight[Item, Result],
        work: AsyncGenerator[Item | Landed[Result], None] | Coroutine[Any, Any, Result],
    ) -> Landed[Result]:
        if not isinstance(work, AsyncGenerator):
            return Landed(await work)
        landed: Landed[Result] | None = None
        async with aclosing(work) as items:
            async for item in items:
                if isinstance(item, Landed):
                    landed = item
                    continue
                flight.items.append(item)
                flight.weight += self._weigh(item)
                if flight.weight > self._max_bytes:
                    self._shut(flight)
                flight.announce()
        if landed is None:
            raise RuntimeError("a shared stream ended without Landed(result)")
        return landed

    def _left(self, flight: _Flight[Item, Result]) -> None:
        flight.passengers -= 1
        if flight.passengers or flight.over:
            return
        self._shut(flight)
        # Not at once: a task that is cancelled before its first step never runs.
        flight.task.get_loop().call_soon(flight.task.cancel)

    def _shut(self, flight: _Flight[Item, Result]) -> None:
        """Let nobody else on board."""
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]


def _own(error: Exception) -> Exception:
    """A copy of `error`: what one passenger adds to it, headers or traceback, stays its own."""
    try:
        copied: Exception = type(error).__new__(type(error), *error.args)
        copied.__dict__.update(error.__dict__)
    except TypeError:
        return error
    copied.__cause__ = error
    return copied

"""Whatever becomes of a request, the ledger knows it before the client does.

settlement = Settlement(recorder, traffic)
async with settlement.of(journey):     # settles what ends without an answer
    ...
    await settlement.ok(journey)       # durable when it returns
await settlement.drain()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from factory.gateway.errors import ApiError
from factory.gateway.journey import CLIENT_CLOSED, Journey, Outcome, Recorder, settle
from factory.ledger.records import ChargeRecord
from factory.telemetry.traffic import Traffic

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Settlement:
    """Settles the journeys of one gateway, and counts each once."""

    def __init__(self, recorder: Recorder, traffic: Traffic) -> None:
        self._recorder = recorder
        self._traffic = traffic
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ok(self, journey: Journey) -> None:
        """Settle an answered request, also when its caller is cancelled meanwhile.

        Raises `ApiError` 503 when the ledger does not take it.
        """
        # No task of its own: what the recorder has is written, whoever waits for it.
        status = 200
        try:
            await settle(journey, self._recorder, "ok", status)
        except ApiError as error:
            status = error.status
            raise
        finally:
            # What the ledger does not take is not charged.
            self._count(journey, status, journey.charges if status == 200 else ())

    async def refused(self, journey: Journey, error: ApiError) -> None:
        """Settle a request that ends with `error`, unless it is settled already."""
        if journey.handed_over:
            return
        outcome: Outcome = "refused" if error.status < CLIENT_CLOSED else "error"
        self._count(journey, error.status, journey.charges)
        settling = settle(journey, self._recorder, outcome, error.status, error.message)
        with contextlib.suppress(ApiError):
            await self.finish(settling)

    def _count(self, journey: Journey, status: int, charges: Sequence[ChargeRecord]) -> None:
        self._traffic.settled(
            team=journey.key.team,
            endpoint=journey.endpoint,
            tier=journey.tier,
            model=journey.served.model if journey.served else None,
            status=status,
            cache=journey.cache,
            degraded=journey.degraded,
            elapsed_s=journey.elapsed_ms / 1000,
            charges=charges,
        )

    @asynccontextmanager
    async def of(
        self, journey: Journey, settles: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[None]:
        """Settle whatever ends without an answer, then let the error go on.

        `settles` is asked when it happens: it is false once somebody else settles the journey.
        """
        try:
            yield
        except ApiError as error:
            await self._end(journey, error, settles)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            gone = ApiError(CLIENT_CLOSED, "client_closed", "the client left before the answer")
            await self._end(journey, gone, settles)
            raise
        except Exception as error:
            _log.exception("request %s failed by a defect of the gateway", journey.request_id)
            problem = ApiError(500, "internal_error", "the gateway failed; the log says why")
            await self._end(journey, problem, settles)
            raise problem from error

    async def _end(self, journey: Journey, error: ApiError, settles: Callable[[], bool]) -> None:
        error.headers = error.headers | journey.headers()
        if settles():
            await self.refused(journey, error)

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` to its end even if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait for the settlements that departed clients left behind."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

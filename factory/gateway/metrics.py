"""`GET /metrics`: what this gateway process counts, and how it stands at the moment.

    metrics = Metrics(settings, ledger, clock, turns, awakening, rungs, traffic, engines)
    metrics.open or metrics.permit(key)     # ApiError 403; open while the gateway is on loopback
    body = await metrics.scrape()

A scrape waits for nobody: what the ledger or an engine does not say in time is left out, and
nothing that sleeps is woken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address

from factory.config import Settings
from factory.gateway.awakening import Awakening
from factory.gateway.clock import Clock
from factory.gateway.errors import ApiError
from factory.gateway.served import Served
from factory.gateway.turns import Turns
from factory.ledger.errors import LedgerError
from factory.ledger.keys import ApiKey
from factory.ledger.store import Ledger
from factory.telemetry import books
from factory.telemetry.engines import EngineState
from factory.telemetry.exposition import render
from factory.telemetry.state import State
from factory.telemetry.traffic import Traffic

_log = logging.getLogger(__name__)

BOOKS_S = 5.0
"""Seconds for which what the ledger said is shown again."""

PATIENCE_S = 1.0
"""Seconds that a scrape waits for the ledger."""

Engines = Callable[[], Awaitable[Mapping[str, EngineState]]]
"""Asks the engines that are awake; those that do not answer soon are left out."""


def on_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Metrics:
    """The metrics of one gateway process."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        clock: Clock,
        turns: Turns,
        awakening: Awakening,
        rungs: Callable[[], list[Served]],
        traffic: Traffic,
        engines: Engines | None,
    ) -> None:
        """`rungs` are all models on all ladders; `engines` is None where there is none to ask."""
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._turns = turns
        self._awakening = awakening
        self._rungs = rungs
        self._traffic = traffic
        self._engines = engines
        self.open = on_loopback(settings.gateway.host)
        """Nobody needs a key."""
        self._books: books.Books | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[books.Books | None] | None = None
        self._targets_s = {
            name: endpoint.target.ttft_ms / 1000
            for name, endpoint in settings.endpoints.items()
            if endpoint.target.ttft_ms is not None
        }

    def permit(self, key: ApiKey) -> None:
        """Raise `ApiError` 403 unless the key may see the figures of all teams."""
        if "metrics" not in key.roles:
            raise ApiError(
                403,
                "role_missing",
                "this key has not the role 'metrics', and the figures are of all teams; "
                "`factory keys create --role metrics` makes one for Prometheus",
            )

    async def scrape(self) -> bytes:
        """All metrics in Prometheus' text format."""
        read, engines = await asyncio.gather(self._ledgers(), self._asked())
        asleep: dict[str, bool] = {}
        for one in self._rungs():
            if one.sleeper is not None:
                asleep[one.model] = one.asleep or asleep.get(one.model, False)
        state = State(
            running=self._turns.running,
            waiting=self._turns.waiting_by_class(),
            waking=self._awakening.waiting,
            asleep=asleep,
            targets_s=self._targets_s,
            engines=engines,
            books=read,
        )
        # Some thousand lines are tens of milliseconds, in which nobody else would be answered.
        return await asyncio.to_thread(render, self._traffic, state)

    async def _asked(self) -> Mapping[str, EngineState]:
        return {} if self._engines is None else await self._engines()

    async def _ledgers(self) -> books.Books | None:
        """What the ledger says, at most `BOOKS_S` old; None when it does not answer in time."""
        if self._clock.monotonic() - self._read_at < BOOKS_S:
            return self._books
        # A ledger that hangs is waited for by one thread, however often somebody scrapes.
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        reading = self._reading
        await asyncio.wait({reading}, timeout=PATIENCE_S)
        return reading.result() if reading.done() else None

    async def _read(self) -> books.Books | None:
        try:
            found = await asyncio.to_thread(
                books.read, self._ledger, self._settings, self._clock.now()
            )
        except LedgerError as error:
            _log.warning("the metrics lack budgets and jobs: %s", error)
            return None
        self._books, self._read_at = found, self._clock.monotonic()
        return found

"""Waiting for engines: how long, and what it is called when it was too long.

    async with in_time(allowed):    # TooSlow once the attempt's own time is over
        answer = await engine.answer(body)

How much time an attempt gets is decided by `factory.routing.patience`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from factory.gateway.engine import EngineError
from factory.routing.patience import Allowed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the gateway waits for engines, in seconds."""

    attempt_s: float = 120.0
    """For a whole answer; less where another tier could stand in."""
    first_token_s: float = 60.0
    """For the first chunk of a stream, likewise."""
    idle_s: float = 30.0
    """Between two chunks."""
    retry_s: float = 0.1
    """Before asking a tier again: this long plus up to as much again."""
    longest_retry_s: float = 1.0
    """An engine that asks for a longer wait is not asked again."""


class TooSlow(EngineError):
    """No answer within the time that an attempt gets while something else can answer."""


@asynccontextmanager
async def in_time(allowed: Allowed) -> AsyncIterator[None]:
    """Raise `TooSlow`, or `TimeoutError` when it is only the engine's own limit, once over."""
    try:
        async with asyncio.timeout(allowed.seconds):
            yield
    except TimeoutError:
        if not allowed.reason:
            raise
        waited = f"no answer within {allowed.seconds:.1f} s ({allowed.reason})"
        raise TooSlow(504, waited, retryable=False) from None


def ended_early() -> EngineError:
    """The error for a stream that stops without saying why."""
    return EngineError(502, "the stream ended early", retryable=True)


def as_engine_error(error: Exception) -> EngineError:
    """Any failure of an engine in one form; the details of an unexpected one go to the log."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, TimeoutError):
        return EngineError(504, "no answer in time", retryable=False)
    _log.error("an engine failed unexpectedly", exc_info=error)
    return EngineError(502, f"the engine failed ({type(error).__name__})", retryable=False)

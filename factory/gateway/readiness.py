"""Can this gateway answer? The ledger must, and for each endpoint at least one model.

A model outside the cluster counts as ready while it is switched on: it is not called just to see.
Nor is an engine that may sleep, since asking would keep it awake: it is woken when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from factory.gateway.engine import EngineError
from factory.gateway.served import Served, Serving
from factory.ledger.errors import LedgerError

CHECK_S = 5.0
"""Seconds after which a silent engine or ledger counts as not ready."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What answers and what does not."""

    ready: bool
    problems: dict[str, str] = field(default_factory=dict)
    """By part: `ledger`, `endpoint/tier`."""
    asleep: tuple[str, ...] = ()
    """Models that sleep until somebody asks."""


async def check(ping_ledger: Callable[[], object], serving: Serving) -> Readiness:
    """Ask the ledger and every model inside the cluster at the same time."""
    pairs = [(name, one) for name, rungs in serving.items() for one in rungs.values()]
    ledger, *answers = await asyncio.gather(
        _ledger(ping_ledger), *(_model(one) for _, one in pairs)
    )
    problems = {"ledger": ledger} if ledger else {}
    able: set[str] = set()
    for (name, one), problem in zip(pairs, answers, strict=True):
        if problem:
            problems[f"{name}/tier {one.tier}"] = problem
        else:
            able.add(name)
    ready = not ledger and bool(serving) and able == set(serving)
    asleep = sorted({one.label for _, one in pairs if one.asleep})
    return Readiness(ready, problems, tuple(asleep))


async def _ledger(ping: Callable[[], object]) -> str:
    try:
        async with asyncio.timeout(CHECK_S):
            await asyncio.to_thread(ping)
    except TimeoutError:
        return "no answer in time"
    except LedgerError as error:
        return str(error)
    return ""


async def _model(served: Served) -> str:
    if served.off or served.external or served.sleeper is not None:
        return served.off
    try:
        async with asyncio.timeout(CHECK_S):
            await served.check()
    except TimeoutError:
        return "no answer in time"
    except EngineError as error:
        return error.message
    return ""

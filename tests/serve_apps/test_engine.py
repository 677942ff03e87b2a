"""When a replica of an engine says that it should be replaced."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serve_apps.engine import MOST_NAPS, TierEngine


def replica(**changes: Any) -> Any:
    """What `check_health` looks at: a standby that sleeps."""
    known = {"_server": None, "_naps": MOST_NAPS, "_ongoing": 0, "_starting": asyncio.Lock()}
    return SimpleNamespace(**known | changes)


async def test_a_standby_that_has_slept_often_gives_way() -> None:
    with pytest.raises(RuntimeError, match="a new one takes over"):
        await TierEngine.check_health(replica())
    await TierEngine.check_health(replica(_naps=MOST_NAPS - 1))


async def test_one_that_is_needed_does_not() -> None:
    await TierEngine.check_health(replica(_ongoing=1))
    starting = replica()
    async with starting._starting:
        await TierEngine.check_health(starting)


async def test_an_engine_that_runs_is_asked_itself() -> None:
    class Dead:
        async def check_health(self) -> None:
            raise RuntimeError("the engine is dead")

    with pytest.raises(RuntimeError, match="dead"):
        await TierEngine.check_health(replica(_server=Dead(), _naps=0))

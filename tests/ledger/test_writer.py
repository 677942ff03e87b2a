"""Group commit from asyncio: many callers, few transactions, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, make_url, text

from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.store import Entry, Ledger, open_ledger
from factory.ledger.writer import LedgerWriter

MakeEntry = Callable[..., Entry]


async def test_what_is_awaited_is_recorded(ledger: Ledger, entry: MakeEntry) -> None:
    writer = LedgerWriter(ledger)
    request, charges = entry("r1")
    await writer.record(request, charges)
    assert ledger.request("r1") == (request, charges)
    await writer.record(request, charges)
    await writer.close()


@pytest.mark.postgres
async def test_many_callers_share_few_transactions(postgres_url: str, entry: MakeEntry) -> None:
    ledger = open_ledger(postgres_url)
    writer = LedgerWriter(ledger, max_batch=64)
    await asyncio.gather(*(writer.record(*entry(f"r{n}")) for n in range(200)))
    await writer.close()
    with ledger.read() as connection:
        count = connection.scalar(text("SELECT count(DISTINCT xmin::text) FROM requests"))
    assert count == 4
    ledger.close()


async def test_a_bad_record_fails_only_its_own_caller(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record(*entry("taken"))
    stolen = entry("thief")
    stolen[1][0] = replace(stolen[1][0], charge_id="taken-0")  # type: ignore[index]
    unfit = (replace(entry("unfit")[0], cost_nusd=1), entry("unfit")[1])
    good = [entry(f"good-{n}") for n in range(20)]
    writer = LedgerWriter(ledger)
    batch = [*good[:10], entry("taken", (99,)), stolen, unfit, *good[10:]]
    outcomes = await asyncio.gather(
        *(writer.record(*item) for item in batch), return_exceptions=True
    )
    await writer.close()
    assert [type(outcome) for outcome in outcomes[10:13]] == [LedgerError] * 3
    assert [outcome for outcome in outcomes if outcome is None] == [None] * 20
    recorded = {request.request_id for request in ledger.requests()}
    assert recorded == {"taken", *(request.request_id for request, _ in good)}


async def test_close_writes_what_waits_and_then_refuses(ledger: Ledger, entry: MakeEntry) -> None:
    writer = LedgerWriter(ledger, max_batch=3)
    waiting = [asyncio.create_task(writer.record(*entry(f"r{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    await writer.close()
    assert ledger.costs().total.requests == 10
    await asyncio.gather(*waiting)
    with pytest.raises(LedgerError, match="closed"):
        await writer.record(*entry("late"))
    await writer.close()


async def test_a_caller_who_leaves_is_still_charged(ledger: Ledger, entry: MakeEntry) -> None:
    writer = LedgerWriter(ledger)
    leaving = asyncio.create_task(writer.record(*entry("r1")))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await writer.record(*entry("r2"))
    await writer.close()
    assert ledger.costs().total.requests == 2


@pytest.mark.postgres
async def test_a_lost_database_fails_everybody_and_the_writer_lives_on(
    postgres_server: str, postgres_url: str, entry: MakeEntry
) -> None:
    ledger = open_ledger(postgres_url)
    writer = LedgerWriter(ledger)
    await writer.record(*entry("before"))
    server = create_engine(
        make_url(postgres_server).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
    )
    name = make_url(postgres_url).database
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    outcomes = await asyncio.gather(
        *(writer.record(*entry(f"r{n}")) for n in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 5
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    open_ledger(postgres_url).close()
    await writer.record(*entry("after"))
    assert [request.request_id for request in ledger.requests()] == ["after"]
    await writer.close()
    ledger.close()
    server.dispose()

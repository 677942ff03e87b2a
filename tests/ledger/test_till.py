"""Granting from leases and settling in a journal: as exact as the database, and safe from death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory.ledger import spend
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.journal import Journal, left_behind, read
from factory.ledger.reservations import SILENCE, Reservation
from factory.ledger.schema import RESERVATIONS
from factory.ledger.store import Entry, Ledger, open_ledger
from factory.ledger.till import AMPLE, Till
from factory.ledger.writer import LedgerWriter

Make = Callable[..., Entry]
Want = Callable[..., Reservation]
FAR = 10_000_000


@asynccontextmanager
async def tilling(ledger: Ledger, folder: Path, name: str = "one") -> AsyncIterator[Till]:
    till = Till(LedgerWriter(ledger, holder=name), Journal(folder, name))
    await till.start()
    try:
        yield till
    finally:
        await till.close()


def held(ledger: Ledger) -> dict[str, int]:
    with ledger.read() as connection:
        rows = connection.execute(RESERVATIONS.select())
        return {row.request_id: row.amount_nusd for row in rows}


async def test_callers_wait_for_a_ledger_that_is_slower_than_they_are(
    ledger: Ledger, entry: Make, tmp_path: Path
) -> None:
    callers, each, most = 16, 150, 0

    async def ask(till: Till, caller: int) -> None:
        nonlocal most
        for number in range(each):
            await till.record(*entry(f"r{caller}-{number}", (1,)))
            most = max(most, till.waiting)

    async with tilling(ledger, tmp_path / "journals") as till:
        await asyncio.gather(*(ask(till, caller) for caller in range(callers)))
        assert most < AMPLE + callers
        await till.flush()
        assert ledger.costs().total.cost_nusd == callers * each


async def test_grants_come_from_one_lease_and_charges_follow(
    ledger: Ledger, entry: Make, wanted: Want, tmp_path: Path
) -> None:
    async with tilling(ledger, tmp_path / "journals") as till:
        for number in range(40):
            grant = await till.reserve(wanted(f"r{number}", 100, limit=FAR))
            assert grant.granted
        assert list(held(ledger)) == ["lease-one-0"]
        for number in range(40):
            await till.record(*entry(f"r{number}", (60,)))
        await till.flush()
        assert ledger.costs().total.cost_nusd == 40 * 60
        assert spend.reconcile(ledger) == []
        assert list((tmp_path / "journals").glob("*.jsonl")) == []
    assert held(ledger) == {}
    assert list((tmp_path / "journals").iterdir()) == []


async def test_many_tills_at_once_never_overspend(
    url: str, entry: Make, wanted: Want, tmp_path: Path
) -> None:
    ledgers = [open_ledger(url) for _ in range(3)]
    tills = [
        Till(
            LedgerWriter(one, holder=f"till{number}"),
            Journal(tmp_path / "journals", f"till{number}"),
        )
        for number, one in enumerate(ledgers)
    ]
    granted = 0

    async def work(number: int) -> None:
        nonlocal granted
        till, name, cost = tills[number % 3], f"r{number}", 0
        for amount in (10, 10 + number % 4):
            grant = await till.reserve(wanted(name, amount, limit=5_000))
            cost = amount if grant.granted else cost
        granted += cost > 0
        await till.record(*entry(name, (cost,)))

    for first in range(0, 600, 60):
        await asyncio.gather(*(work(number) for number in range(first, first + 60)))
        for one in tills:
            await one.flush()
        assert spend.reconcile(ledgers[0]) == []
        assert ledgers[0].costs().total.cost_nusd <= 5_000
    await asyncio.gather(*(one.close() for one in tills))
    assert spend.reconcile(ledgers[0]) == []
    assert held(ledgers[0]) == {}
    total = ledgers[0].costs().total
    assert total.requests == 600
    assert 0 < granted < 600
    assert 4_900 < total.cost_nusd <= 5_000
    for one in ledgers:
        one.close()


async def test_the_last_money_of_a_budget_is_found(
    ledger: Ledger, entry: Make, wanted: Want, tmp_path: Path
) -> None:
    async with tilling(ledger, tmp_path / "journals") as till:
        assert (await till.reserve(wanted("r1", 10))).granted
        await till.record(*entry("r1", (10,)))
        assert (await till.reserve(wanted("r2", 990))).granted
        assert held(ledger)["r2"] == 990
        refused = await till.reserve(wanted("r3", 1))
        assert not refused.granted
        assert refused.reasons
        await till.record(*entry("r2", (990,)))
    assert ledger.costs().total.cost_nusd == 1_000
    assert spend.reconcile(ledger) == []


async def test_what_a_dead_gateway_journalled_is_charged_once(
    ledger: Ledger, entry: Make, tmp_path: Path
) -> None:
    dead = Journal(tmp_path / "journals", "dead")
    entries = [entry(f"r{number}", (number,)) for number in range(5)]
    for one in entries[:3]:
        dead.append(*one)
    dead.seal()
    for one in entries[3:]:
        dead.append(*one)
    ledger.record(*entries[1])
    assert list(left_behind(tmp_path / "journals")) == []  # it lives
    with (tmp_path / "journals" / "dead.000000001.jsonl").open("ab") as file:
        file.write(b'[{"request_id": "never acknow')
    dead.close()
    async with tilling(ledger, tmp_path / "journals"):
        assert [request.request_id for request in ledger.requests()] == [f"r{n}" for n in range(5)]
        assert ledger.request("r4") == (entries[4][0], list(entries[4][1]))
    assert list((tmp_path / "journals").iterdir()) == []


async def test_a_damaged_journal_is_set_aside(
    ledger: Ledger, entry: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Journal(tmp_path / "journals", "dead")
    dead.append(*entry("r1"))
    segment = dead.seal()
    assert segment is not None
    segment.write_bytes(b"nonsense\n" + segment.read_bytes())
    dead.close()
    with pytest.raises(LedgerError, match="is damaged"):
        read(segment)
    async with tilling(ledger, tmp_path / "journals"):
        assert list(ledger.requests()) == []
    assert "dead.000000000.jsonl is damaged" in caplog.text
    assert [path.name for path in (tmp_path / "journals").iterdir()] == ["dead.000000000.damaged"]


async def test_while_the_database_is_away_nothing_new_is_granted_and_nothing_is_lost(
    ledger: Ledger, entry: Make, wanted: Want, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tilling(ledger, tmp_path / "journals") as till:
        assert (await till.reserve(wanted("r1", 10, limit=FAR))).granted
        with monkeypatch.context() as broken:

            def away(batch: object) -> None:
                raise LedgerUnavailable("the database does not answer")

            broken.setattr(ledger, "book", away)
            await till.record(*entry("r1", (10,)))
            with pytest.raises(LedgerUnavailable):
                await till.flush()
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await till.reserve(wanted("r2", 10, limit=FAR))
        await till.flush()
        assert (await till.reserve(wanted("r3", 10, limit=FAR))).granted
        assert ledger.costs().total.cost_nusd == 10
        assert spend.reconcile(ledger) == []


async def test_a_lease_is_not_used_once_others_may_take_its_gateway_for_dead(
    ledger: Ledger, wanted: Want, tmp_path: Path
) -> None:
    time = datetime.now(UTC)
    writer = LedgerWriter(ledger, holder="one", clock=lambda: time)
    till = Till(writer, Journal(tmp_path / "journals", "one"), clock=lambda: time)
    await till.start()
    assert (await till.reserve(wanted("r1", 10, limit=FAR))).granted
    time += SILENCE * 2
    ledger.beat("other", time, reaps=True)
    assert held(ledger) == {}
    assert (await till.reserve(wanted("r2", 10, limit=FAR))).granted
    # Made anew, it covers the request that was in progress, too.
    assert held(ledger)["lease-one-0"] >= 20
    assert spend.reconcile(ledger) == []
    await till.close()


async def test_an_idle_lease_goes_back(
    ledger: Ledger, entry: Make, wanted: Want, tmp_path: Path
) -> None:
    seconds = 0.0
    till = Till(
        LedgerWriter(ledger), Journal(tmp_path / "journals", "one"), monotonic=lambda: seconds
    )
    await till.start()
    assert (await till.reserve(wanted("r1", 10, limit=FAR))).granted
    await till.record(*entry("r1", (10,)))
    await till.flush()
    assert len(held(ledger)) == 1
    seconds += 60
    async with asyncio.timeout(10):
        while held(ledger):
            await asyncio.sleep(0.02)
    await till.close()
    assert spend.reconcile(ledger) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"gateway\.journal: false"):
        Journal(tmp_path / "file" / "journals", "one")


def test_hours_have_leases_of_their_own(wanted: Want) -> None:
    from factory.ledger.leases import scope_of

    one = wanted("r1", 1)
    later = wanted("r2", 1, created_at=one.created_at + timedelta(hours=1))
    assert scope_of(one) != scope_of(later)

"""Whatever happens: no budget overspent, no charge lost or doubled, what the dead held comes back.

The first test lets hypothesis think of histories of two gateways; the others run real ones.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.config import Budget
from factory.ledger import spend
from factory.ledger.budgets import bounded
from factory.ledger.journal import Journal
from factory.ledger.reservations import SILENCE, Reservation
from factory.ledger.schema import RESERVATIONS, SPEND
from factory.ledger.store import Batch, Entry, Ledger, open_ledger
from factory.ledger.till import Till
from factory.ledger.writer import LedgerWriter

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
Make = Callable[..., Entry]
Want = Callable[..., Reservation]
MakeBudget = Callable[..., Budget]

requests = st.integers(0, 9)
steps = st.one_of(
    st.tuples(st.just("reserve"), requests, st.integers(0, 120)),
    st.tuples(st.just("settle"), requests, st.integers(0, 130)),
    st.tuples(st.just("hit"), requests, st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 1), st.just(0)),
)


class History:
    """Two gateways on one ledger, and what they should have done to it."""

    def __init__(self, ledger: Ledger, entry: Make, budget: MakeBudget) -> None:
        self.ledger = ledger
        self.entry = entry
        self.name = uuid.uuid4().hex
        self.budgets = {
            f"team:{self.name}-0": budget(hourly=150, daily=200),
            f"team:{self.name}-1": budget(weekly=300, at_limit="cheap_tiers"),
            f"endpoint:{self.name}": budget(monthly=400, at_limit="review"),
            f"key:{self.name}": budget(daily=250),
        }
        self.held: dict[int, int] = {}
        self.settled: dict[int, Entry] = {}
        self.excess: dict[str, int] = defaultdict(int)

    def who(self, number: int) -> dict[str, object]:
        return {
            "team": f"{self.name}-{number % 2}",
            "endpoint": self.name,
            "key_id": self.name if number % 3 else None,
            "created_at": NOON + timedelta(minutes=20 * number),
        }

    def wanted(self, number: int, amount: int) -> Reservation:
        bare = Reservation(request_id=f"{self.name}-{number}", amount_nusd=0, **self.who(number))  # type: ignore[arg-type]
        mine = bounded({scope: self.budgets.get(scope, Budget()) for scope in bare.scopes})
        return Reservation(
            request_id=bare.request_id,
            amount_nusd=amount,
            budgets=mine,
            **self.who(number),  # type: ignore[arg-type]
        )

    def play(self, steps: list[tuple[str, int, int]]) -> None:
        """One batch of one gateway, as its writer would send it."""
        holder = f"{self.name}-holder-{steps[0][1] % 2}"
        entries: list[Entry] = []
        wanted: list[Reservation] = []
        numbers: list[int] = []
        for kind, number, amount in steps:
            if kind == "reserve" and number not in self.settled:
                wanted.append(self.wanted(number, amount))
                numbers.append(number)
            elif kind == "settle":
                entries.append(self.settle(number, amount))
            elif kind == "hit":
                name = f"hit-{uuid.uuid4().hex}"
                entries.append(self.entry(name, (0,), cache="hit", **self.who(number)))
        self.held = {
            number: held for number, held in self.held.items() if number not in self.settled
        }
        booked = self.ledger.book(
            Batch(entries=entries, wanted=wanted, holder=holder, beats=True, now=NOON)
        )
        for number, item, grant in zip(numbers, wanted, booked.grants, strict=True):
            if grant.granted and item.amount_nusd:
                self.held[number] = max(self.held.get(number, 0), item.amount_nusd)
        for kind, number, _ in steps:
            if kind == "die":
                self.die(number)

    def settle(self, number: int, cost: int) -> Entry:
        if number not in self.settled:
            self.settled[number] = self.entry(f"{self.name}-{number}", (cost,), **self.who(number))
            over = max(0, cost - self.held.get(number, 0))
            for scope in self.wanted(number, 0).scopes:
                self.excess[scope] += over
        return self.settled[number]

    def die(self, number: int) -> None:
        later = NOON + SILENCE * 2
        holder = f"{self.name}-holder-{number}"
        with self.ledger.read() as connection:
            query = RESERVATIONS.select().where(RESERVATIONS.c.holder == holder)
            lost = {int(row.request_id.rpartition("-")[2]) for row in connection.execute(query)}
        self.ledger.beat(holder, NOON)
        self.ledger.beat(f"{self.name}-holder-{1 - number}", later)
        self.ledger.beat("reaper", later, reaps=True)
        self.held = {key: held for key, held in self.held.items() if key not in lost}

    def check(self) -> None:
        assert spend.reconcile(self.ledger) == []
        with self.ledger.read() as connection:
            held = {
                int(row.request_id.rpartition("-")[2]): row.amount_nusd
                for row in connection.execute(RESERVATIONS.select())
                if row.request_id.startswith(self.name)
            }
            assert held == self.held
            for row in connection.execute(SPEND.select()):
                limit = self.budgets.get(row.scope, Budget()).limits_nusd.get(row.window)
                if limit is not None:
                    assert row.spent_nusd + row.reserved_nusd <= limit + self.excess[row.scope]
        cost = sum(request.cost_nusd for request, _ in self.settled.values())
        charges = [c for c in self.ledger.charges() if c.endpoint == self.name]
        assert sum(charge.cost_nusd for charge in charges) == cost


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(st.lists(steps, min_size=1, max_size=6), max_size=10))
def test_no_history_overspends_loses_or_doubles(
    ledger: Ledger, entry: Make, budget: MakeBudget, history: list[list[tuple[str, int, int]]]
) -> None:
    played = History(ledger, entry, budget)
    for batch in history:
        played.play(batch)
        played.check()


async def test_gateways_at_once_never_overspend(url: str, entry: Make, wanted: Want) -> None:
    ledgers = [open_ledger(url) for _ in range(3)]
    writers = [LedgerWriter(each, max_batch=8) for each in ledgers]
    answered = 0

    async def work(number: int) -> None:
        nonlocal answered
        writer = writers[number % 3]
        name, cost = f"r{number}", 0
        for amount in (10, 10 + number % 4):
            grant = await writer.reserve(wanted(name, amount, limit=1_000))
            cost = amount if grant.granted else cost
        answered += cost > 0
        await writer.record(*entry(name, (cost,)))

    await asyncio.gather(*(work(number) for number in range(150)))
    await asyncio.gather(*(writer.close() for writer in writers))
    assert spend.reconcile(ledgers[0]) == []
    total = ledgers[0].costs().total
    assert total.requests == 150
    assert 0 < answered < 150
    assert 990 < total.cost_nusd <= 1_000
    with ledgers[0].read() as connection:
        assert connection.execute(RESERVATIONS.select()).all() == []
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("through_tills", [False, True])
def test_killed_gateways_lose_nothing_and_hold_nothing(
    url: str, tmp_path: Path, through_tills: bool
) -> None:
    limit, after = (6_000, 200) if through_tills else (1_500, 20)
    count = 1_000 if through_tills else 300
    more = (str(tmp_path / "journals"),) if through_tills else ()
    spenders = [
        spender(url, name, 10_000 if name == "dead" else count, limit, *more)
        for name in ("dead", "a", "b")
    ]
    heard: dict[str, str] = {}
    try:
        assert [hear(each) for each in spenders] == ["open"] * 3
        for each in spenders:
            say(each)
        lines = [hear(spenders[0]) for _ in range(after)]
        spenders[0].send_signal(signal.SIGKILL)
        spenders[0].wait(timeout=30)
        assert spenders[0].stdout is not None
        rest = spenders[0].stdout.read()
        lines += rest[: rest.rfind("\n") + 1].split()
        for each in spenders[1:]:
            lines += each.communicate(timeout=60)[0].split()
            assert each.returncode == 0
        heard = dict(line.split(":") for line in lines)
    finally:
        for each in spenders:
            each.kill()
            each.wait()
    ledger = open_ledger(url)
    assert spend.reconcile(ledger) == []
    if through_tills:
        asyncio.run(inherit(ledger, tmp_path / "journals"))
        assert spend.reconcile(ledger) == []
    ledger.beat("reaper", datetime.now(UTC) + SILENCE * 2, reaps=True)
    assert spend.reconcile(ledger) == []
    with ledger.read() as connection:
        assert connection.execute(RESERVATIONS.select()).all() == []
    recorded = {request.request_id: request for request in ledger.requests()}
    for name, told in heard.items():
        assert told == (
            str(recorded[name].cost_nusd) if recorded[name].status == "ok" else "refused"
        )
    assert ledger.costs().total.cost_nusd <= limit
    # What the dead one held may be spent by the next: the budget fills up to less than a request.
    heir = spender(url, "heir", 2 * count, limit, *more)
    try:
        say(heir)
        assert "refused" in heir.communicate(timeout=60)[0]
    finally:
        heir.kill()
        heir.wait()
    assert limit - 10 < ledger.costs().total.cost_nusd <= limit
    assert spend.reconcile(ledger) == []
    ledger.close()


async def inherit(ledger: Ledger, folder: Path) -> None:
    """What the next gateway with the same folder does when it starts."""
    till = Till(LedgerWriter(ledger), Journal(folder, "next"))
    await till.start()
    assert [path.name for path in folder.iterdir() if path.suffix == ".jsonl"] == []
    await till.close()
    assert list(folder.iterdir()) == []


def spender(url: str, name: str, count: int, limit: int, *more: str) -> subprocess.Popen[str]:
    scribe = Path(__file__).with_name("scribe.py")
    paths = os.pathsep.join(filter(None, [str(scribe.parents[2]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(scribe), url, name, str(count), str(limit), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()

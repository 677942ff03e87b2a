"""Holding money: before each attempt, released by settlement, given back when a holder dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from factory.config import Budget
from factory.ledger import audit
from factory.ledger.budgets import GRANTED, Grant
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.reservations import BEAT, SILENCE, Reservation
from factory.ledger.schema import HOLDERS, RESERVATIONS, SPEND
from factory.ledger.spend import Amounts, Place, load, places, reconcile
from factory.ledger.store import Batch, Entry, Ledger
from factory.ledger.writer import LedgerWriter

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
TODAY = Place("team:support", "day", datetime(2026, 11, 23, tzinfo=UTC))
Make = Callable[..., Entry]
Want = Callable[..., Reservation]
MakeBudget = Callable[..., Budget]


def reserve(ledger: Ledger, *wanted: Reservation, holder: str = "h") -> list[Grant]:
    booked = ledger.book(Batch(wanted=wanted, holder=holder, beats=True, now=NOON))
    assert reconcile(ledger) == []
    return booked.grants


def rows(ledger: Ledger, table: str) -> int:
    with ledger.read() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def today(ledger: Ledger) -> Amounts:
    with ledger.read() as connection:
        return load(connection, [TODAY])[TODAY]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time


def test_held_then_charged_and_the_rest_given_back(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    assert reserve(ledger, wanted("r1", 600))[0].granted
    assert today(ledger) == Amounts(0, 600)
    refused = reserve(ledger, wanted("r2", 401))[0]
    assert (refused.granted, refused.act) == (False, "refuse")
    ledger.record(*entry("r1", (150,)))
    assert today(ledger) == Amounts(150, 0)
    assert rows(ledger, "reservations") == 0
    assert reserve(ledger, wanted("r2", 850))[0].granted
    assert reconcile(ledger) == []


def test_each_attempt_grows_what_is_held_and_asking_again_changes_nothing(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    for total, held in ((300, 300), (700, 700), (700, 700), (100, 700)):
        assert reserve(ledger, wanted("r1", total))[0].granted
        assert today(ledger).reserved_nusd == held
    assert not reserve(ledger, wanted("r1", 1_001))[0].granted
    assert today(ledger).reserved_nusd == 700
    ledger.record(*entry("r1", (250, 320)))
    assert today(ledger) == Amounts(570, 0)


def test_in_one_batch_the_later_sees_the_earlier(ledger: Ledger, wanted: Want) -> None:
    grants = reserve(ledger, *(wanted(f"r{n}", 300) for n in range(5)))
    assert [grant.granted for grant in grants] == [True] * 3 + [False] * 2
    assert today(ledger).reserved_nusd == 900


def test_all_windows_of_all_scopes_must_have_room(
    ledger: Ledger, wanted: Want, budget: MakeBudget
) -> None:
    budgets = {
        "team:support": budget(daily=1_000, monthly=5_000),
        "endpoint:helpdesk": budget(hourly=400, at_limit="cheap_tiers"),
        "key:k": budget(weekly=800),
    }
    grants = [
        reserve(ledger, wanted(f"r{n}", amount, budgets=budgets, key_id="k"))[0]
        for n, amount in enumerate((401, 300, 900))
    ]
    assert [grant.granted for grant in grants] == [False, True, False]
    assert (grants[0].act, grants[0].scope) == ("cheap_tiers", "endpoint:helpdesk")
    assert (grants[2].act, grants[2].scope) == ("refuse", "key:k")
    assert rows(ledger, "reservations") == 1


def test_a_budget_made_in_mid_month_counts_what_was_spent_and_is_held(
    ledger: Ledger, entry: Make, wanted: Want, budget: MakeBudget
) -> None:
    ledger.record_many([entry("a", (30,)), entry("b", (12,), endpoint="other")])
    ledger.record(*entry("long ago", (500,), created_at=NOON - timedelta(days=40)))
    reserve(ledger, wanted("r1", 7))
    late = {"team:support": budget(monthly=100)}
    assert not reserve(ledger, wanted("r2", 52, budgets=late))[0].granted
    assert reserve(ledger, wanted("r3", 51, budgets=late))[0].granted
    ledger.record(*entry("r1", (7,)))
    assert reconcile(ledger) == []


def test_a_request_counts_in_the_window_in_which_it_arrived(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    midnight = datetime(2026, 11, 24, tzinfo=UTC)
    before = midnight - timedelta(seconds=1)
    reserve(ledger, wanted("r1", 900, created_at=before), wanted("r2", 900, created_at=midnight))
    ledger.record(*entry("r1", (800,), created_at=before))
    assert today(ledger) == Amounts(800, 0)
    assert not reserve(ledger, wanted("r3", 201, created_at=before))[0].granted
    assert not reserve(ledger, wanted("r4", 101, created_at=midnight))[0].granted


def test_recording_twice_charges_a_budget_once(ledger: Ledger, entry: Make, wanted: Want) -> None:
    reserve(ledger, wanted("r1", 600))
    one = entry("r1", (600,))
    ledger.record(*one)
    ledger.record(*one)
    ledger.record_many([one, entry("r2", (5,)), one])
    assert today(ledger) == Amounts(605, 0)
    with pytest.raises(LedgerError, match="other content"):
        ledger.record(*entry("r1", (9,)))
    assert today(ledger) == Amounts(605, 0)


def test_free_hits_touch_no_sums(ledger: Ledger, entry: Make, wanted: Want) -> None:
    reserve(ledger, wanted("r1", 10))
    with ledger.write() as connection:
        connection.execute(SPEND.delete())
        connection.execute(RESERVATIONS.delete())
        connection.execute(text("DROP TABLE spend"))
        connection.execute(text("DROP TABLE reservations"))
    ledger.book(Batch(entries=[entry("hit", (0,), cache="hit")], held=()))
    assert ledger.request("hit") is not None


def test_another_request_cannot_use_what_one_holds(ledger: Ledger, wanted: Want) -> None:
    reserve(ledger, wanted("r1", 10))
    with pytest.raises(LedgerError, match="'r1' holds money for another"):
        reserve(ledger, wanted("r1", 10, key_id="k"))
    with pytest.raises(LedgerError, match="budget of team:support does not bound request 'r1'"):
        wanted("r1", 10, team="research")


@pytest.mark.parametrize("amount", [-1, 2**63, 1.5])
def test_amounts_that_make_no_sense_are_refused(wanted: Want, amount: int) -> None:
    with pytest.raises(LedgerError, match="amount_nusd must be an integer"):
        wanted("r1", amount)


def test_what_a_silent_holder_held_comes_back_and_is_accounted_for(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    reserve(ledger, wanted("dead", 400, key_id="k"), holder="dead")
    reserve(ledger, wanted("alive", 300), holder="alive")
    later = NOON + SILENCE + BEAT
    ledger.beat("alive", later)
    assert ledger.silent(later)
    ledger.beat("alive", later, reaps=True)
    assert not ledger.silent(later)
    assert today(ledger) == Amounts(0, 300)
    (event,) = audit.events(ledger, subject="dead")
    assert event.action == "reservation.reaped"
    assert event.detail["reason"] == "the gateway died before it settled this request"
    assert (event.detail["amount_nusd"], event.detail["http_status"]) == (400, 503)
    assert ledger.request("dead") is None
    # It was only slow: what it settles counts in full, once.
    late = entry("dead", (390,), key_id="k")
    ledger.record(*late)
    ledger.record(*late)
    assert today(ledger) == Amounts(390, 300)
    assert reconcile(ledger) == []


async def test_without_a_budget_nothing_is_asked(ledger: Ledger, wanted: Want) -> None:
    ledger.close()
    with ledger.write() as connection:
        connection.execute(text("DROP TABLE reservations"))
    writer = LedgerWriter(ledger)
    assert await writer.reserve(wanted("r1", 10**12, budgets={})) == GRANTED
    assert await writer.reserve(wanted("r1", 0)) == GRANTED
    await writer.close()


async def test_a_writer_beats_and_reaps_only_in_unbroken_contact(
    ledger: Ledger, wanted: Want
) -> None:
    clock = Clock()
    reserve(ledger, wanted("orphan", 400), holder="dead")
    writer = LedgerWriter(ledger, holder="me", clock=clock)
    clock.time += timedelta(hours=1)
    await writer.beat()
    assert today(ledger).reserved_nusd == 400  # just arrived: perhaps the database was down
    for _ in range(4):
        clock.time += BEAT
        await writer.beat()
    assert today(ledger).reserved_nusd == 0
    assert (await writer.reserve(wanted("mine", 5))).granted
    clock.time += BEAT
    await writer.beat()
    with ledger.read() as connection:
        beats = {row.holder: row.beat_at for row in connection.execute(HOLDERS.select())}
    assert beats == {"me": clock.time}
    await writer.close()
    assert today(ledger).reserved_nusd == 0
    assert rows(ledger, "holders") == 0


async def test_a_writer_that_stood_still_judges_nobody(ledger: Ledger, wanted: Want) -> None:
    clock = Clock()
    writer = LedgerWriter(ledger, holder="me", clock=clock)
    for _ in range(5):
        clock.time += BEAT
        await writer.beat()
    reserve(ledger, wanted("theirs", 400), holder="them")
    clock.time += timedelta(minutes=5)
    await writer.beat()
    assert today(ledger).reserved_nusd == 400
    await writer.close()


async def test_what_could_not_be_settled_is_given_back(
    ledger: Ledger, entry: Make, wanted: Want, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = LedgerWriter(ledger)
    assert (await writer.reserve(wanted("r1", 400))).granted
    with monkeypatch.context() as broken:

        def down(batch: Batch) -> None:
            raise LedgerUnavailable("the database is down")

        broken.setattr(ledger, "book", down)
        with pytest.raises(LedgerUnavailable):
            await writer.record(*entry("r1", (300,)))
    assert today(ledger) == Amounts(0, 400)
    await writer.beat()
    assert today(ledger) == Amounts(0, 0)
    (event,) = audit.events(ledger, subject="r1")
    assert event.action == "reservation.abandoned"
    await writer.record(*entry("r1", (300,)))
    assert today(ledger) == Amounts(300, 0)
    await writer.close()


async def test_reservations_and_records_share_transactions_and_fail_alone(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    writer = LedgerWriter(ledger)
    await writer.reserve(wanted("r0", 400))
    ledger.record(*entry("taken", (12,)))
    outcomes = await asyncio.gather(
        writer.reserve(wanted("r1", 500)),
        writer.record(*entry("r0", (100,))),
        writer.record(*entry("taken", (99,))),
        writer.reserve(wanted("r1", 1, created_at=NOON + BEAT)),
        writer.reserve(wanted("r2", 1_000)),
        return_exceptions=True,
    )
    assert [type(outcomes[2]), type(outcomes[3])] == [LedgerError] * 2
    granted = [outcome.granted for outcome in outcomes if isinstance(outcome, Grant)]
    assert granted == [True, False]
    await writer.record(*entry("r1", (0,)))
    await writer.close()
    assert today(ledger).reserved_nusd == 0
    assert reconcile(ledger) == []


async def test_a_caller_who_leaves_while_reserving_settles_all_the_same(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    writer = LedgerWriter(ledger)
    leaving = asyncio.create_task(writer.reserve(wanted("r1", 400)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await writer.record(*entry("r1", (0,)))
    assert today(ledger) == Amounts(0, 0)
    assert rows(ledger, "reservations") == 0
    await writer.close()


def test_places_cover_each_window_of_each_scope(wanted: Want) -> None:
    item = replace(wanted("r1", 1), key_id="k")
    found = places(item.scopes, item.created_at)
    assert len(set(found)) == 12
    assert TODAY in found

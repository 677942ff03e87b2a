"""What a success cost: exact by hand, and the same from the database as from the records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.config import NANO
from factory.ledger import costs
from factory.ledger.outcomes import Outcome, record_outcome
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.report import CostsReport, costs_report
from factory.ledger.store import Entry, Ledger
from factory.ledger.success import HUMAN_NUSD_PER_HOUR, SuccessLine

MakeEntry = Callable[..., Entry]
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
numbers = itertools.count()


def outcome(request_id: str, success: bool, minutes: float = 0, minute: int = 0) -> Outcome:
    return Outcome(
        outcome_id=f"out-{next(numbers)}",
        request_id=request_id,
        created_at=NOON + timedelta(minutes=minute),
        success=success,
        human_minutes=minutes,
    )


def a_day(entry: MakeEntry) -> tuple[list[Entry], list[Outcome]]:
    """Cheap and dear answers, an escalation, a failure that was paid for; six outcomes."""
    skipped, charges = entry("skipped", (40_000,), model="big")
    entries: list[Entry] = [
        (replace(skipped, tier=2), [replace(charges[0], tier=2)]),
        entry("cheap-1", (1_000,)),
        entry("cheap-2", (1_000,)),
        entry("climbed", (1_000, 40_000), model="big"),
        entry("cached", (), tier=0, cache="hit", model=None),
        entry("unknown", (7_000,)),
        entry("failed", (3_000,), tier=None, model=None, status="error", http_status=502),
        entry("research-1", (5_000,), team="research", endpoint="lab", tier=2, model="big"),
    ]
    outcomes = [
        outcome("cheap-1", True),
        outcome("cheap-2", False, minutes=4),
        outcome("climbed", False),
        outcome("climbed", True, minutes=1, minute=1),
        outcome("skipped", True),
        outcome("cached", True),
    ]
    return entries, outcomes


def report_of(entries: list[Entry], outcomes: list[Outcome], **more: Any) -> CostsReport:
    charges = [charge for _, charges in entries for charge in charges]
    return costs_report([request for request, _ in entries], charges, outcomes=outcomes, **more)


def named(lines: tuple[SuccessLine, ...]) -> dict[str, SuccessLine]:
    return {line.name: line for line in lines}


def test_every_figure_of_a_small_day(entry: MakeEntry) -> None:
    success = report_of(*a_day(entry), human_nusd_per_hour=60 * NANO).success
    support = named(success.by_team)["support"]
    assert (support.answered, support.reported, support.succeeded) == (6, 5, 4)
    assert support.human_minutes == 5
    assert support.human_nusd == 5 * NANO
    reported = 1_000 + 1_000 + 41_000 + 40_000 + 0
    assert support.cost_nusd == reported + 3_000 * 5 // 6, "the failed one counts as the others do"
    assert support.cost_per_success_nusd == (5 * NANO + reported + 2_500) // 4
    assert support.success_rate == 0.8
    assert success.total.answered == 7
    assert success.total.cost_nusd == reported + round(3_000 * 5 / 7)


def test_each_model_and_tier_has_its_price_of_a_success(entry: MakeEntry) -> None:
    success = report_of(*a_day(entry), human_nusd_per_hour=60 * NANO).success
    models, tiers = named(success.by_model), named(success.by_tier)
    assert list(models) == ["", "big", "smollm2-135m"]
    assert list(tiers) == ["", "0", "1", "2"]
    assert models["big"].cost_per_success_nusd == (41_000 + 40_000 + NANO) // 2
    assert tiers["1"].cost_per_success_nusd == 2_000 + 4 * NANO
    assert tiers["0"].cost_per_success_nusd == 0
    assert tiers[""].cost_per_success_nusd is None
    assert list(named(success.by_endpoint)) == ["helpdesk", "lab"]
    assert named(success.by_endpoint)["lab"].success_rate is None


def test_the_cheapest_viable_tier(entry: MakeEntry) -> None:
    success = report_of(*a_day(entry)).success
    # Counted: cheap-1, climbed, cached, unknown. Not: cheap-2 failed, skipped skipped tier 1.
    assert named(success.by_endpoint)["helpdesk"].cheapest == 4
    assert named(success.by_endpoint)["lab"].cheapest_viable_share == 1.0, "no lower one is used"
    assert success.total.cheapest_viable_share == 5 / 7
    stood_in = report_of([entry("r1", degraded=True)], []).success.total
    assert (stood_in.answered, stood_in.cheapest) == (1, 0)


def test_the_price_of_an_hour_has_a_stated_default(entry: MakeEntry) -> None:
    success = report_of([entry("r1", ())], [outcome("r1", True, minutes=60)]).success
    assert success.total.cost_per_success_nusd == HUMAN_NUSD_PER_HOUR == 45 * NANO
    assert success.as_dict()["human_usd_per_hour"] == "45.000000000"


def test_as_dict_has_integers_and_exact_dollars(entry: MakeEntry) -> None:
    plain = report_of(*a_day(entry)).as_dict()["success"]
    assert json.loads(json.dumps(plain)) == plain
    for line in (plain, *plain["by_team"], *plain["by_model"], *plain["by_tier"]):
        for name in [name for name in line if name.endswith("_nusd")]:
            dollars = line[name.removesuffix("_nusd") + "_usd"]
            assert (None if dollars is None else Decimal(dollars).scaleb(9)) == line[name]


def test_the_database_counts_the_same_small_day(ledger: Ledger, entry: MakeEntry) -> None:
    entries, outcomes = a_day(entry)
    ledger.record_many(entries)
    for item in outcomes:
        record_outcome(ledger, item)
    assert ledger.costs() == report_of(entries, outcomes)
    with ledger.read() as connection:
        found = costs.costs(connection, None, None, 60 * NANO)
    assert found == report_of(entries, outcomes, human_nusd_per_hour=60 * NANO)


@st.composite
def days(draw: st.DrawFn) -> tuple[list[Entry], list[Outcome]]:
    """Any requests on any tiers, tried on any others, with any outcomes."""
    start = START + timedelta(days=next(numbers))
    tiers = st.none() | st.integers(0, 3)
    entries: list[Entry] = []
    outcomes: list[Outcome] = []
    for _ in range(draw(st.integers(1, 8))):
        name = f"r{next(numbers)}"
        who: dict[str, Any] = {
            "team": draw(st.sampled_from(["support", "research"])),
            "endpoint": draw(st.sampled_from(["helpdesk", "batch"])),
            "created_at": start + timedelta(minutes=draw(st.integers(0, 9))),
            "request_id": name,
        }
        charges = [
            ChargeRecord(
                charge_id=f"{name}-{seq}",
                seq=seq,
                kind="generation",
                tier=draw(tiers),
                cost_nusd=draw(st.integers(0, 10_000)),
                **who,
            )
            for seq in range(draw(st.integers(0, 3)))
        ]
        request = RequestRecord(
            status=draw(st.sampled_from(["ok", "ok", "ok", "refused", "error"])),
            http_status=200,
            tier=draw(tiers),
            model=draw(st.sampled_from([None, "small", "big"])),
            degraded=draw(st.integers(0, 4)) == 0,
            cost_nusd=sum(charge.cost_nusd for charge in charges),
            **who,
        )
        entries.append((request, charges))
        for minute in range(draw(st.integers(0, 2))):
            minutes = draw(st.floats(0, 100_000))
            outcomes.append(outcome(name, draw(st.booleans()), minutes, minute))
    return entries, outcomes


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(day=days(), first=st.integers(0, 10), length=st.integers(0, 10))
def test_the_database_and_the_records_give_the_same_figures(
    ledger: Ledger, day: tuple[list[Entry], list[Outcome]], first: int, length: int
) -> None:
    entries, outcomes = day
    ledger.record_many(entries)
    for item in outcomes:
        record_outcome(ledger, item)
    midnight = entries[0][0].created_at.replace(hour=0, minute=0)
    since = midnight + timedelta(minutes=first)
    until = since + timedelta(minutes=length)
    inside = [item for item in entries if since <= item[0].created_at < until]
    found = ledger.costs(since, until)
    assert found.success == report_of(inside, outcomes).success


@given(days())
def test_the_parts_add_up_to_the_whole(day: tuple[list[Entry], list[Outcome]]) -> None:
    success = report_of(*day).success
    for lines in (success.by_team, success.by_endpoint, success.by_model, success.by_tier):
        for name in ("answered", "reported", "succeeded", "cheapest"):
            assert sum(getattr(line, name) for line in lines) == getattr(success.total, name)
        assert sum(line.human_minutes for line in lines) == pytest.approx(
            success.total.human_minutes
        )
    assert 0 <= success.total.succeeded <= success.total.reported
    assert 0 <= success.total.cheapest <= success.total.answered

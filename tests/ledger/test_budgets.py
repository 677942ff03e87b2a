"""Deciding: what fits, which act holds, when a window resets; and how budgets are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from typer.testing import CliRunner

from factory.cli import app
from factory.config import WINDOWS, Budget, Settings, Window, default_text, parse
from factory.ledger import spend
from factory.ledger.budgets import Act, Standing, configured, decide, status
from factory.ledger.keys import create_key, revoke
from factory.ledger.reservations import Reservation
from factory.ledger.store import Batch, Entry, Ledger, open_ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MakeEntry = Callable[..., Entry]
MakeBudget = Callable[..., Budget]


def standing(
    limit: int,
    spent: int = 0,
    reserved: int = 0,
    act: Act = "refuse",
    window: Window = "day",
    scope: str = "team:support",
) -> Standing:
    start = spend.starts_at(window, NOON)
    return Standing(
        scope=scope,
        window=window,
        starts_at=start,
        resets_at=spend.ends_at(window, start),
        limit_nusd=limit,
        spent_nusd=spent,
        reserved_nusd=reserved,
        act=act,
    )


def test_the_last_nano_dollar_fits_and_no_more() -> None:
    full = [standing(100, spent=60, reserved=30)]
    assert decide(full, 10).granted
    refused = decide(full, 11)
    assert (refused.granted, refused.act, refused.window) == (False, "refuse", "day")
    assert refused.resets_at == datetime(2026, 11, 24, tzinfo=UTC)
    assert refused.reasons == (
        "0.000000011 USD more does not fit the budget of team:support for the day: limit "
        "0.000000100 USD, spent 0.000000060, reserved 0.000000030; it resets at 2026-11-24T00:00Z",
    )


def test_the_strictest_act_holds_and_of_those_the_last_reset() -> None:
    cheap = standing(1, act="cheap_tiers", window="month", scope="endpoint:helpdesk")
    hour = standing(1, window="hour")
    week = standing(1, window="week", scope="key:k")
    review = standing(1, act="review", window="month")
    grant = decide([cheap, hour, week, review], 2)
    assert (grant.act, grant.scope, grant.window) == ("refuse", "key:k", "week")
    assert len(grant.reasons) == 4
    assert decide([cheap, review], 2).act == "review"
    assert decide([cheap], 2).act == "cheap_tiers"


def test_a_person_may_allow_what_only_asks_for_review() -> None:
    review, refuse = standing(1, act="review"), standing(1, act="refuse")
    assert decide([review], 2, approved=True).granted
    assert decide([review, refuse], 2, approved=True).act == "refuse"


def test_what_costs_nothing_always_fits() -> None:
    assert decide([standing(10, spent=50)], 0).granted
    assert decide([], 10**18).granted


money = st.integers(0, 2**40)


@given(
    standings=st.lists(
        st.builds(
            standing,
            money,
            money,
            money,
            st.sampled_from(("refuse", "cheap_tiers", "review")),
            st.sampled_from(WINDOWS),
        )
    ),
    amount=st.integers(1, 2**40),
)
def test_granted_means_it_fits_everywhere(standings: list[Standing], amount: int) -> None:
    grant = decide(standings, amount)
    fits = [each.spent_nusd + each.reserved_nusd + amount <= each.limit_nusd for each in standings]
    assert grant.granted == all(fits)
    acts = {each.act for each, fit in zip(standings, fits, strict=True) if not fit}
    strictest = next((act for act in ("refuse", "review", "cheap_tiers") if act in acts), None)
    assert grant.act == strictest
    assert len(grant.reasons) == fits.count(False)


@given(moment=st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_windows_follow_each_other_without_gaps(moment: datetime) -> None:
    for window in WINDOWS:
        start = spend.starts_at(window, moment)
        end = spend.ends_at(window, start)
        assert start <= moment < end
        assert spend.starts_at(window, end) == end
        assert spend.starts_at(window, end - timedelta(microseconds=1)) == start


def test_windows_are_the_calendar_s_in_utc() -> None:
    sunday_night = datetime(2026, 11, 29, 22, 30, tzinfo=timezone(timedelta(hours=-3)))
    starts = {window: spend.starts_at(window, sunday_night) for window in WINDOWS}
    assert starts == {
        "hour": datetime(2026, 11, 30, 1, tzinfo=UTC),
        "day": datetime(2026, 11, 30, tzinfo=UTC),
        "week": datetime(2026, 11, 30, tzinfo=UTC),
        "month": datetime(2026, 11, 1, tzinfo=UTC),
    }
    assert spend.ends_at("month", starts["month"]) == datetime(2026, 12, 1, tzinfo=UTC)


def with_budgets(folder: Path) -> Settings:
    plain = parse(default_text(), "factory.yaml", folder, {})
    support = plain.teams["support"].model_copy(
        update={"budget": Budget.model_validate({"monthly_usd": 1, "at_limit": "cheap_tiers"})}
    )
    helpdesk = plain.endpoints["helpdesk"].model_copy(
        update={"budget": Budget.model_validate({"daily_usd": "0.5"})}
    )
    return plain.model_copy(
        update={
            "teams": plain.teams | {"support": support},
            "endpoints": plain.endpoints | {"helpdesk": helpdesk},
        }
    )


def test_status_shows_every_budget_exactly(
    ledger: Ledger, entry: MakeEntry, budget: MakeBudget, tmp_path: Path
) -> None:
    settings = with_budgets(tmp_path)
    _, key = create_key(ledger, settings, "support", budget=budget(hourly=300))
    _, gone = create_key(ledger, settings, "support", budget=budget(hourly=300))
    revoke(ledger, gone.key_id)
    ledger.record(*entry("before", (40,), key_id=key.key_id))
    budgets = configured(settings) | {f"key:{key.key_id}": key.budget}
    held = Reservation(
        request_id="r",
        created_at=NOON,
        team="support",
        endpoint="helpdesk",
        key_id=key.key_id,
        amount_nusd=75,
        budgets=budgets,
    )
    for booked in (False, True):
        if booked:
            ledger.book(Batch(wanted=[held], holder="h", beats=True))
        rows = status(ledger, settings, NOON + timedelta(minutes=5))
        assert [(row.scope, row.window, row.act) for row in rows] == [
            ("team:support", "month", "cheap_tiers"),
            ("endpoint:helpdesk", "day", "refuse"),
            (f"key:{key.key_id}", "hour", "refuse"),
        ]
        assert {row.spent_nusd for row in rows} == {40}
        assert {row.reserved_nusd for row in rows} == {75 * booked}
        assert rows[2].left_nusd == 260 - 75 * booked
    assert status(ledger, settings, NOON + timedelta(hours=1))[2].left_nusd == 300


def run(home: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"FACTORY_HOME": str(home)})
    return result.exit_code, result.output


def test_the_command_line_shows_budgets_alerts_and_wrong_sums(
    tmp_path: Path, entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "There is no budget" in run(tmp_path, "budgets")[1]
    code, made = run(
        tmp_path,
        *("keys", "create", "--team", "support", "--role", "reviewer", "--daily-usd", "0.000001"),
        *("--at-limit", "review", "--alert-at", "0.5", "--max-request-usd", "0.1", "--json"),
    )
    key = json.loads(made)
    assert code == 0
    assert (key["roles"], key["limits"]) == (["reviewer"], {"max_request_usd": "0.1"})
    assert key["budget"] == {"daily_usd": "0.000001", "alert_at": [0.5], "at_limit": "review"}
    code, wrong = run(tmp_path, "keys", "create", "--team", "support", "--daily-usd", "-1")
    assert code == 2
    assert "--daily-usd" in wrong

    now = datetime.now(UTC)
    ledger = open_ledger(f"sqlite:///{tmp_path / 'factory.db'}")
    scope = f"key:{key['key_id']}"
    budgets = {scope: Budget.model_validate(key["budget"])}
    request, charges = entry("r1", (800,), key_id=key["key_id"], created_at=now)
    wanted = Reservation(
        request_id="r1",
        created_at=now,
        team=request.team,
        endpoint=request.endpoint,
        key_id=request.key_id,
        amount_nusd=900,
        budgets=budgets,
    )
    ledger.book(Batch(wanted=[wanted], holder="h", beats=True))
    ledger.book(Batch(entries=[(request, charges)], budgets=budgets))
    assert run(tmp_path, "budgets", "check")[0] == 0
    (line,) = json.loads(run(tmp_path, "budgets", "--json")[1])["budgets"]
    assert (line["spent_usd"], line["reserved_usd"]) == ("0.000000800", "0.000000000")
    assert scope in run(tmp_path, "budgets")[1]
    (alert,) = json.loads(run(tmp_path, "budgets", "alerts", "--json")[1])["alerts"]
    assert (alert["scope"], alert["fraction"]) == (scope, 0.5)
    assert "50%" in run(tmp_path, "budgets", "alerts")[1]

    with ledger.write() as connection:
        connection.execute(text("UPDATE spend SET spent_nusd = 799"))
    ledger.close()
    code, told = run(tmp_path, "budgets", "check", "--json")
    (difference,) = json.loads(told)["differences"]
    assert code == 1
    assert (difference["spent_usd"], difference["charged_usd"]) == ("0.000000799", "0.000000800")

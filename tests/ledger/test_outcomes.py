"""Outcomes: recorded once, the latest counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.ledger import audit
from factory.ledger.errors import LedgerError
from factory.ledger.outcomes import Outcome, latest, record_outcome, that_count
from factory.ledger.store import Entry, Ledger
from factory.ledger.verification import verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def outcome(outcome_id: str = "out-1", minute: int = 0, **more: Any) -> Outcome:
    given = {"request_id": "r1", "success": True, "human_minutes": 1.5, "reporter": "key-1"}
    when = NOON + timedelta(minutes=minute)
    return Outcome(outcome_id=outcome_id, created_at=when, **(given | more))


@pytest.fixture(autouse=True)
def recorded(ledger: Ledger, entry: Callable[..., Entry]) -> None:
    ledger.record_many([entry("r1"), entry("r2", team="research")])


def test_the_outcome_reported_last_counts(ledger: Ledger) -> None:
    assert latest(ledger, "r1") is None
    assert record_outcome(ledger, outcome("b", 1, comment="reopened \0 \ud800"))
    assert record_outcome(ledger, outcome("a", 2, success=False))
    assert record_outcome(ledger, outcome("c", 0))
    assert latest(ledger, "r1") == outcome("a", 2, success=False)
    sealed = audit.events(ledger, action="outcome")
    assert [item.action for item in sealed] == [
        *("outcome.success", "outcome.failure", "outcome.success")
    ]
    assert json.loads(json.dumps(outcome().as_dict()))["human_minutes"] == 1.5


def test_a_repetition_is_harmless_and_other_content_is_refused(ledger: Ledger) -> None:
    assert record_outcome(ledger, outcome())
    assert not record_outcome(ledger, outcome(minute=5))
    with pytest.raises(LedgerError, match="'out-1' is already recorded with other content"):
        record_outcome(ledger, outcome(success=False))
    assert latest(ledger, "r1") == outcome()
    assert len(audit.events(ledger, action="outcome")) == 1


def test_only_requests_that_exist_and_are_the_teams_have_outcomes(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="there is no request 'r9'"):
        record_outcome(ledger, outcome(request_id="r9"))
    with pytest.raises(LedgerError, match="there is no request 'r2'"):
        record_outcome(ledger, outcome(request_id="r2"), team="support")
    assert record_outcome(ledger, outcome(request_id="r2"), team="research")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"human_minutes": -0.1}, "from 0 to"),
        ({"human_minutes": float("nan")}, "from 0 to"),
        ({"human_minutes": float("inf")}, "from 0 to"),
        ({"human_minutes": "3"}, "must be a number"),
        ({"human_minutes": True}, "must be a number"),
        ({"success": 1}, "true or false"),
        ({"outcome_id": ""}, "outcome_id must be"),
        ({"request_id": "x\0"}, "request_id must be"),
        ({"created_at": datetime(2026, 1, 1)}, "time zone"),
    ],
)
def test_an_outcome_that_makes_no_sense_is_refused(more: dict[str, Any], said: str) -> None:
    given = {"outcome_id": "o", "request_id": "r1", "created_at": NOON, "success": True}
    with pytest.raises(LedgerError, match=said):
        Outcome(**(given | more))


def test_reports_at_once_count_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        fresh = list(pool.map(lambda _: record_outcome(ledger, outcome()), range(4)))
    assert sorted(fresh) == [False, False, False, True]
    assert verify(ledger).ok


@given(st.floats(0, 100_000), st.floats(0, 100_000))
def test_human_time_adds_up_in_whole_milliseconds(one: float, other: float) -> None:
    made = outcome(human_minutes=one)
    assert abs(made.human_ms - one * 60_000) <= 1
    assert outcome(human_minutes=made.human_minutes) == made
    found = that_count([outcome("x", 1, human_minutes=other), outcome("y", 0, human_minutes=one)])
    assert found["r1"].outcome_id == "x"

"""The review queue: one decision, one run, and every step in the audit log."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.ledger import audit
from factory.ledger.errors import LedgerError
from factory.ledger.reviews import (
    Review,
    claim,
    decide,
    expire,
    finish,
    get,
    list_reviews,
    open_review,
)
from factory.ledger.store import Ledger
from factory.ledger.verification import verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
numbers = itertools.count()


def review(review_id: str = "rev-1", **more: Any) -> Review:
    given = {
        "created_at": NOON,
        "request_id": "req-1",
        "team": "support",
        "endpoint": "helpdesk",
        "key_id": "key-1",
        "stage": "input",
        "reasons": ("personal data: PHONE_NUMBER",),
        "request": {"messages": [{"role": "user", "content": "call \0 Ana \ud83d é"}], "n": 1.5},
    }
    return Review(review_id=review_id, **(given | more))


def steps(ledger: Ledger, review_id: str = "rev-1") -> list[tuple[str, str]]:
    return [(item.actor, item.action) for item in audit.events(ledger, subject=review_id)]


def test_a_review_comes_back_as_it_was_opened(ledger: Ledger) -> None:
    opened = review(stage="output", answer={"choices": []})
    open_review(ledger, opened)
    assert get(ledger, "rev-1") == opened
    assert get(ledger, "rev-2") is None
    assert json.loads(json.dumps(opened.as_dict()))["stage"] == "output"
    with pytest.raises(LedgerError, match="there is a review 'rev-1' already"):
        open_review(ledger, opened)


def test_approved_run_done(ledger: Ledger) -> None:
    open_review(ledger, review())
    decided = decide(ledger, "rev-1", "approve", "ana", "known customer", at=LATER)
    assert (decided.status, decided.decided_by, decided.decided_at) == ("approved", "ana", LATER)
    taken = claim(ledger, "rev-1", at=LATER)
    assert taken is not None
    assert (taken.status, taken.request) == ("running", review().request)
    assert claim(ledger, "rev-1", at=LATER) is None
    done = finish(ledger, "rev-1", {"id": "chatcmpl-1"}, at=LATER)
    assert get(ledger, "rev-1") == done
    assert (done.status, done.result, done.note) == ("done", {"id": "chatcmpl-1"}, "known customer")
    assert steps(ledger) == [
        ("key-1", "review.open"),
        ("ana", "review.approve"),
        ("system", "review.run"),
        ("system", "review.done"),
    ]
    assert verify(ledger).ok
    with pytest.raises(LedgerError, match="is done, not running"):
        finish(ledger, "rev-1", {}, at=LATER)


def test_an_edit_keeps_both_texts(ledger: Ledger) -> None:
    open_review(ledger, review(stage="output", answer={"content": "call 555"}))
    edited = decide(ledger, "rev-1", "edit", "ana", "", "call us", at=LATER)
    assert (edited.status, edited.text, edited.result) == ("edited", "call us", None)
    assert claim(ledger, "rev-1", at=LATER) is not None
    done = finish(ledger, "rev-1", {"error": "down"}, at=LATER, failed=True)
    assert (done.status, done.text, done.result) == ("failed", "call us", {"error": "down"})
    assert done.answer == {"content": "call 555"}
    sealed = audit.events(ledger, action="review.edit")[0].detail
    assert sealed["digest"] == edited.digest == done.digest
    assert "call us" not in json.dumps(sealed)


def test_the_second_decision_says_who_made_the_first(ledger: Ledger) -> None:
    open_review(ledger, review())
    decide(ledger, "rev-1", "reject", "ana", "no", at=LATER)
    with pytest.raises(LedgerError, match="was decided already: rejected by ana"):
        decide(ledger, "rev-1", "approve", "bob", "yes", at=LATER)
    assert claim(ledger, "rev-1", at=LATER) is None
    assert [action for _, action in steps(ledger)] == ["review.open", "review.reject"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"decision": "edit"}, "an edit needs a text"),
        ({"text": "new"}, "only an edit has one"),
        ({"decision": "edit", "text": "x" * 200_001}, "at most 200000"),
        ({"decision": "approved"}, "decision must be one of approve, edit, reject"),
        ({"by": ""}, "by must be 1 to 200"),
        ({"at": NOON.replace(tzinfo=None)}, "time zone"),
        ({"review_id": "rev-9"}, "there is no review 'rev-9'"),
        ({"review_id": "rev-2", "decision": "edit", "text": "x"}, "approved or rejected"),
    ],
)
def test_a_decision_that_makes_no_sense_changes_nothing(
    ledger: Ledger, more: dict[str, Any], said: str
) -> None:
    open_review(ledger, review())
    open_review(ledger, review("rev-2", stage="budget"))
    given = {"review_id": "rev-1", "decision": "approve", "by": "ana", "note": "", "at": LATER}
    with pytest.raises(LedgerError, match=said):
        decide(ledger, **(given | more))
    assert [item.status for item in list_reviews(ledger)] == ["pending", "pending"]


@pytest.mark.parametrize(
    "more",
    [
        {"stage": "middle"},
        {"status": "lost"},
        {"created_at": NOON.replace(tzinfo=None)},
        {"request": {"x": float("inf")}},
        {"request": None},
        {"answer": [1]},
        {"request_id": "a\0"},
    ],
)
def test_a_review_that_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        review(**more)


def test_the_queue_is_listed_by_team_and_status(ledger: Ledger) -> None:
    open_review(ledger, review("rev-b", created_at=LATER))
    open_review(ledger, review("rev-a"))
    open_review(ledger, review("rev-c", team="research"))
    decide(ledger, "rev-a", "approve", "ana", "", at=LATER)
    assert [item.review_id for item in list_reviews(ledger)] == ["rev-a", "rev-c", "rev-b"]
    assert [item.review_id for item in list_reviews(ledger, "support", "pending")] == ["rev-b"]
    assert [item.review_id for item in list_reviews(ledger, limit=1)] == ["rev-a"]
    with pytest.raises(LedgerError, match="status must be one of pending"):
        list_reviews(ledger, status="lost")


def test_what_waits_too_long_expires_and_what_ended_stays(ledger: Ledger) -> None:
    for name in ("pending", "approved", "running", "done", "fresh"):
        open_review(ledger, review(name, created_at=LATER if name == "fresh" else NOON))
    for name in ("approved", "running", "done"):
        decide(ledger, name, "approve", "ana", "", at=NOON)
    for name in ("running", "done"):
        claim(ledger, name, at=NOON)
    finish(ledger, "done", {}, at=NOON)
    assert expire(ledger, LATER, at=LATER) == ["approved", "pending", "running"]
    assert expire(ledger, LATER, at=LATER) == []
    by_name = {item.review_id: item.status for item in list_reviews(ledger)}
    assert (by_name["done"], by_name["fresh"]) == ("done", "pending")
    with pytest.raises(LedgerError, match="was decided already: expired"):
        decide(ledger, "pending", "approve", "bob", "", at=LATER)
    with pytest.raises(LedgerError, match="is expired, not running"):
        finish(ledger, "running", {}, at=LATER)
    assert len(audit.events(ledger, action="review.expire")) == 3
    assert verify(ledger).ok


def test_a_decided_review_waits_anew_from_its_decision_on(ledger: Ledger) -> None:
    open_review(ledger, review())
    decide(ledger, "rev-1", "approve", "ana", "", at=LATER)
    assert expire(ledger, LATER, at=LATER) == []


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Results or errors of calls that start together."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except LedgerError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    decisions=st.lists(st.sampled_from(["approve", "edit", "reject"]), min_size=2, max_size=4),
    gateways=st.integers(2, 3),
)
def test_of_many_at_once_one_decides_and_one_runs(
    ledger: Ledger, decisions: list[Any], gateways: int
) -> None:
    name = f"rev-{next(numbers)}"
    open_review(ledger, replace(review(), review_id=name))

    def choose(who: int) -> Callable[[], Review]:
        text = "new" if decisions[who] == "edit" else None
        return lambda: decide(ledger, name, decisions[who], f"person-{who}", "", text, at=LATER)

    results = at_once([choose(who) for who in range(len(decisions))])
    winners = [found for found in results if isinstance(found, Review)]
    assert len(winners) == 1
    kept = get(ledger, name)
    assert kept == winners[0]
    for found in results:
        assert found == kept or f"by {winners[0].decided_by}" in str(found)

    taken = at_once([lambda: claim(ledger, name, at=LATER)] * gateways)
    ran = [found for found in taken if found is not None]
    assert len(ran) == (0 if winners[0].status == "rejected" else 1)
    if ran:
        ended = at_once([lambda: finish(ledger, name, {"n": 1}, at=LATER)] * 2)
        assert sum(isinstance(found, Review) for found in ended) == 1
    assert len(steps(ledger, name)) == 2 + 2 * len(ran)
    assert verify(ledger).ok

"""Kept answers: replaced, expired, bounded, forgotten by scope."""

from __future__ import annotations

import itertools
from array import array
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.ledger.answers import Answer, get, load_questions, put_many, trim
from factory.ledger.errors import LedgerError
from factory.ledger.store import Ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
numbers = itertools.count()


def answer(number: int, minute: int = 0, ttl: int = 60, **more: Any) -> Answer:
    when = NOON + timedelta(minutes=minute)
    given = {"scope": "support/helpdesk", "entry": {"reply": number, "text": "é \0 \ud83d"}}
    return Answer(
        key=f"{number:032x}",
        created_at=when,
        expires_at=when + timedelta(minutes=ttl),
        **(given | more),
    )


def put(ledger: Ledger, *answers: Answer, **more: Any) -> int:
    with ledger.write() as connection:
        return put_many(connection, answers, **more)


def vector(*values: float) -> bytes:
    return array("f", values).tobytes()


def test_an_answer_comes_back_until_it_expires(ledger: Ledger) -> None:
    kept = answer(1, question="where is my parcel?", embedding=vector(0.1, -0.2))
    assert put(ledger, kept) == 1
    assert get(ledger, kept.key, NOON) == kept
    assert get(ledger, kept.key, NOON + timedelta(minutes=59, seconds=59)) == kept
    assert get(ledger, kept.key, kept.expires_at) is None
    assert get(ledger, "0" * 32, NOON) is None


def test_the_same_key_replaces(ledger: Ledger) -> None:
    put(ledger, answer(1), answer(2))
    newer = answer(1, minute=5, entry={"reply": "new"})
    assert put(ledger, answer(1, entry={"reply": "old"}), newer) == 1
    assert get(ledger, newer.key, NOON) == newer


def test_a_large_answer_is_left_out(ledger: Ledger) -> None:
    large = answer(1, entry={"text": "x" * 1_000})
    assert put(ledger, large, answer(2), max_entry_bytes=500) == 1
    assert get(ledger, large.key, NOON) is None
    assert put(ledger) == 0


def test_questions_are_those_of_the_scope_newest_first(ledger: Ledger) -> None:
    put(
        ledger,
        *(answer(n, n, question=f"q{n}", embedding=vector(n)) for n in range(4)),
        answer(4, 4),
        answer(5, 5, question="elsewhere", embedding=vector(5), scope="other"),
        answer(6, -90, question="expired", embedding=vector(6)),
    )
    found = load_questions(ledger, "support/helpdesk", NOON, 3)
    assert [item.question for item in found] == ["q3", "q2", "q1"]
    assert found[0].embedding == vector(3)
    assert load_questions(ledger, "nobody", NOON, 3) == []


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    answers=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=12),
    bound=st.integers(0, 6),
)
def test_trimming_leaves_the_newest_that_live(
    ledger: Ledger, answers: list[tuple[int, int]], bound: int
) -> None:
    trim(ledger, NOON + timedelta(days=1), 0)
    now = NOON + timedelta(minutes=6)
    made = [answer(next(numbers), minute, ttl) for minute, ttl in answers]
    put(ledger, *made)
    living = sorted(
        (item for item in made if item.expires_at > now), key=lambda item: item.created_at
    )
    gone = trim(ledger, now, bound)
    left = [item for item in made if get(ledger, item.key, NOON) is not None]
    assert len(left) == min(bound, len(living)) == len(made) - gone
    assert sorted(item.created_at for item in left) == [
        item.created_at for item in living[len(living) - len(left) :]
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"key": "XYZ" * 10},
        {"key": "ab"},
        {"scope": ""},
        {"expires_at": datetime(2026, 1, 1)},
        {"embedding": vector(1)},
        {"question": "q", "embedding": b"123"},
        {"question": "q", "embedding": b""},
        {"question": "q", "embedding": bytes(20_000)},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    given = {"key": "0" * 32, "scope": "s", "created_at": NOON, "expires_at": NOON, "entry": {}}
    with pytest.raises(LedgerError):
        Answer(**(given | more))


def test_an_entry_must_be_plain_json(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="plain JSON"):
        put(ledger, answer(1, entry={"x": float("nan")}))
    with pytest.raises(LedgerError, match="plain JSON"):
        put(ledger, answer(1, entry={"x": object()}))

"""Samples: kept once, read with the outcome that counts."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factory.ledger.errors import LedgerError
from factory.ledger.outcomes import Outcome, record_outcome
from factory.ledger.samples import Attempt, Sample, forget_before, keep_many, load
from factory.ledger.store import Entry, Ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
VECTOR = array("H", [0x3C00, 0xBC00]).tobytes()
CHEAP = Attempt(tier=1, model="smollm2-135m", confidence=0.4, accepted=False, cost_nusd=900)
DEAR = Attempt(tier=3, model="premium", accepted=True, cost_nusd=90_000)


def sample(request_id: str, minute: int = 0, **more: Any) -> Sample:
    given = {"endpoint": "helpdesk", "embedding": VECTOR, "attempts": [CHEAP, DEAR]}
    when = NOON + timedelta(minutes=minute)
    return Sample(request_id=request_id, created_at=when, **(given | more))


def keep(ledger: Ledger, *samples: Sample) -> None:
    with ledger.write() as connection:
        keep_many(connection, samples)


def test_samples_come_back_with_the_outcome_that_counts(
    ledger: Ledger, entry: Callable[..., Entry]
) -> None:
    ledger.record_many([entry(f"r{n}") for n in range(1, 4)])
    keep(ledger, *(sample(f"r{n}", n) for n in (3, 1, 2)), sample("r9", 0, endpoint="other"))
    for n, success in enumerate((True, False)):
        when = NOON + timedelta(hours=n)
        record_outcome(
            ledger,
            Outcome(
                outcome_id=f"o{n}",
                request_id="r2",
                created_at=when,
                success=success,
                human_minutes=n,
            ),
        )
    record_outcome(ledger, Outcome(outcome_id="o3", request_id="r3", created_at=NOON, success=True))
    found = load(ledger, "helpdesk")
    assert [(row.request_id, row.success, row.human_minutes) for row in found] == [
        ("r1", None, 0.0),
        ("r2", False, 1.0),
        ("r3", True, 0.0),
    ]
    assert found[0].attempts == (CHEAP, DEAR)
    assert found[0].embedding == VECTOR
    assert [row.request_id for row in load(ledger, "helpdesk", limit=2)] == ["r2", "r3"]
    since = NOON + timedelta(minutes=3)
    assert [row.request_id for row in load(ledger, "helpdesk", since)] == ["r3"]
    assert load(ledger, "nobody") == []


def test_what_is_kept_stays_and_the_old_is_forgotten(ledger: Ledger) -> None:
    keep(ledger, sample("r1"), sample("r2", 5))
    keep(ledger, sample("r1", attempts=[]), sample("r3", 6, embedding=b""))
    keep(ledger)
    assert [len(row.attempts) for row in load(ledger, "helpdesk")] == [2, 2, 2]
    assert forget_before(ledger, NOON + timedelta(minutes=5)) == 1
    assert [row.request_id for row in load(ledger, "helpdesk")] == ["r2", "r3"]


@pytest.mark.parametrize(
    "more",
    [
        {"request_id": ""},
        {"endpoint": "a\0"},
        {"embedding": b"123"},
        {"embedding": bytes(10_000)},
        {"created_at": datetime(2026, 1, 1)},
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    given = {"request_id": "r", "endpoint": "e", "created_at": NOON, "embedding": b""}
    with pytest.raises(LedgerError):
        Sample(**(given | {"attempts": ()} | more))


@pytest.mark.parametrize(
    "more",
    [{"tier": -1}, {"tier": True}, {"model": ""}, {"cost_nusd": 1.5}, {"confidence": float("nan")}],
)
def test_an_attempt_that_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    given = {"tier": 1, "model": "m", "accepted": True, "cost_nusd": 0}
    with pytest.raises(LedgerError):
        Attempt(**(given | more))

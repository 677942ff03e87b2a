"""The promotion log keeps every decision, in order."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from factory.ledger.errors import LedgerError
from factory.ledger.promotions import append, history
from factory.ledger.records import Promotion
from factory.ledger.store import Ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_decisions_come_back_in_the_order_they_were_made(ledger: Ledger) -> None:
    decisions = [
        Promotion(created_at=NOON, name="helpdesk", action="promote", version=1, actor="ana"),
        Promotion(
            created_at=NOON,
            name="helpdesk",
            action="refuse",
            version=2,
            previous=1,
            reasons=["accuracy 0.31 is below 0.40"],
            metrics={"accuracy": 0.31, "interval": [0.28, 0.34]},
        ),
        Promotion(created_at=NOON, name="other", action="promote", version=7),
        Promotion(created_at=NOON, name="helpdesk", action="rollback", version=None, previous=1),
    ]
    written = [append(ledger, decision) for decision in decisions]
    assert history(ledger, "helpdesk") == [written[0], written[1], written[3]]
    assert history(ledger, "nobody") == []


def test_a_decision_is_appended_once(ledger: Ledger) -> None:
    once = append(ledger, Promotion(created_at=NOON, name="h", action="promote", version=1))
    with pytest.raises(LedgerError, match="in the log already"):
        append(ledger, once)

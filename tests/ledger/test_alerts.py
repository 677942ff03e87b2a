"""Alerts: once a window and fraction, before the limit and at it, after the money is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from factory.config import Budget
from factory.ledger import audit
from factory.ledger.alerts import Alert, raised
from factory.ledger.reservations import Reservation
from factory.ledger.store import Batch, Entry, Ledger
from factory.ledger.writer import LedgerWriter

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
Make = Callable[..., Entry]
Want = Callable[..., Reservation]
MakeBudget = Callable[..., Budget]


def buy(ledger: Ledger, wanted: Reservation, entry: Entry) -> list[Alert]:
    """Reserve and settle; the alerts of both."""
    first = ledger.book(Batch(wanted=[wanted], holder="h", beats=True))
    then = ledger.book(Batch(entries=[entry], budgets=wanted.budgets))
    return first.alerts + then.alerts


def test_each_fraction_is_told_once_a_window(ledger: Ledger, entry: Make, wanted: Want) -> None:
    told = [
        [alert.fraction for alert in buy(ledger, wanted(f"r{n}", 200), entry(f"r{n}", (200,)))]
        for n in range(6)
    ]
    assert told == [[], [], [0.5], [0.8], [], [1.0]]
    tomorrow = NOON + timedelta(days=1)
    again = buy(
        ledger,
        wanted("next", 900, created_at=tomorrow),
        entry("next", (900,), created_at=tomorrow),
    )
    assert [alert.fraction for alert in again] == [0.5, 0.8]
    assert [alert.fraction for alert in raised(ledger)] == [0.5, 0.8, 1.0, 0.5, 0.8]
    assert [alert.fraction for alert in raised(ledger, tomorrow)] == [0.5, 0.8]
    first = raised(ledger)[0]
    assert first.sentence == (
        "team:support has spent 0.000000600 USD of its 0.000001000 USD for the day that began "
        "2026-11-23T00:00Z: 50% is passed"
    )


def test_alerts_and_refusals_stand_in_the_audit_log(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    buy(ledger, wanted("r1", 900), entry("r1", (900,)))
    ledger.book(Batch(wanted=[wanted("r2", 200, key_id="key-1")], holder="h"))
    alerts = audit.events(ledger, action="budget.alert")
    assert [(event.subject, event.detail["fraction"]) for event in alerts] == [
        ("team:support", 0.5),
        ("team:support", 0.8),
        ("team:support", 1.0),
    ]
    (refusal,) = audit.events(ledger, action="budget.refuse")
    assert (refusal.actor, refusal.subject, refusal.detail["amount_nusd"]) == ("key-1", "r2", 200)


def test_a_budget_made_in_mid_month_alerts_with_what_was_spent_before(
    ledger: Ledger, entry: Make, wanted: Want, budget: MakeBudget
) -> None:
    ledger.record(*entry("old", (700,)))
    new = {"endpoint:helpdesk": budget(monthly=1_000, alert_at=(0.6, 0.9))}
    (alert,) = buy(ledger, wanted("r1", 1, budgets=new), entry("r1", (1,)))
    assert (alert.scope, alert.fraction, alert.spent_nusd) == ("endpoint:helpdesk", 0.6, 701)


async def test_the_writer_tells_after_the_commit_and_outlives_a_bad_listener(
    ledger: Ledger, entry: Make, wanted: Want
) -> None:
    told: list[tuple[Alert, list[Alert]]] = []

    def listen(alert: Alert) -> None:
        told.append((alert, raised(ledger)))
        raise RuntimeError("the webhook is down")

    writer = LedgerWriter(ledger, on_alert=listen)
    names = [f"r{n}" for n in range(10)]
    grants = await asyncio.gather(*(writer.reserve(wanted(name, 100)) for name in names))
    assert all(grant.granted for grant in grants)
    await asyncio.gather(*(writer.record(*entry(name, (100,))) for name in names))
    await writer.close()
    assert sorted(alert.fraction for alert, _ in told) == [0.5, 0.8]
    assert all(alert in kept for alert, kept in told)

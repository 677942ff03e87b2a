"""Budget alerts: raised once for each scope, window and fraction, before the limit and at it.

    LedgerWriter(ledger, on_alert=lambda alert: print(alert.sentence))
    raised(ledger, since=yesterday)

A configured fraction (`Budget.alert_at`) is raised when what was spent reaches it. The fraction
1.0 is raised, too, when a budget first turns an amount away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from factory.config import Window
from factory.ledger.audit import Event
from factory.ledger.budgets import Standing
from factory.ledger.money import usd
from factory.ledger.schema import ALERTS
from factory.ledger.text import NAME_LENGTH

if TYPE_CHECKING:
    from factory.ledger.store import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A part of a budget that is used up."""

    scope: str
    """`team:NAME`, `key:KEY_ID` or `endpoint:NAME`."""
    window: Window
    starts_at: datetime
    """Beginning of the calendar window."""
    fraction: float
    """Part of the limit; 1.0 means the budget now turns requests away."""
    created_at: datetime
    spent_nusd: int
    """Spent in the window when the alert was raised."""
    limit_nusd: int

    @property
    def sentence(self) -> str:
        """The alert for people."""
        return (
            f"{self.scope} has spent {usd(self.spent_nusd)} USD of its {usd(self.limit_nusd)} USD "
            f"for the {self.window} that began {self.starts_at:%Y-%m-%dT%H:%M}Z: "
            + ("the limit is reached" if self.fraction >= 1 else f"{self.fraction:.0%} is passed")
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a webhook gets them; money as exact US dollars in text."""
        return {
            "scope": self.scope,
            "window": self.window,
            "starts_at": self.starts_at.isoformat(),
            "fraction": self.fraction,
            "created_at": self.created_at.isoformat(),
            "spent_usd": usd(self.spent_nusd),
            "limit_usd": usd(self.limit_nusd),
            "message": self.sentence,
        }


def passed(standing: Standing, fractions: Iterable[float]) -> list[float]:
    """Those of `fractions` of the limit that what was spent has reached."""
    return [
        fraction
        for fraction in fractions
        if standing.spent_nusd >= Decimal(str(fraction)) * standing.limit_nusd
    ]


def of(standing: Standing, fraction: float, now: datetime) -> Alert:
    """The alert that `fraction` of a budget is used up."""
    return Alert(
        scope=standing.scope,
        window=standing.window,
        starts_at=standing.starts_at,
        fraction=fraction,
        created_at=now,
        spent_nusd=standing.spent_nusd,
        limit_nusd=standing.limit_nusd,
    )


def keep_new(connection: Connection, due: Sequence[Alert]) -> list[Alert]:
    """Write those of `due` that were not raised before, and return them; under `spend.lock`."""
    if not due:
        return []
    query = select(ALERTS.c.scope, ALERTS.c.window, ALERTS.c.starts_at, ALERTS.c.fraction).where(
        ALERTS.c.scope.in_({alert.scope for alert in due}),
        ALERTS.c.starts_at.in_({alert.starts_at for alert in due}),
    )
    known = {tuple(row) for row in connection.execute(query)}
    fresh: dict[tuple[Any, ...], Alert] = {}
    for alert in due:
        name = (alert.scope, alert.window, alert.starts_at, alert.fraction)
        if name not in known:
            fresh.setdefault(name, alert)
    if fresh:
        connection.execute(ALERTS.insert(), [_row(alert) for alert in fresh.values()])
    return list(fresh.values())


def event(alert: Alert) -> Event:
    """The alert as the audit log keeps it."""
    return Event(
        created_at=alert.created_at,
        actor="system",
        action="budget.alert",
        subject=alert.scope[:NAME_LENGTH],
        detail={
            "window": alert.window,
            "starts_at": alert.starts_at.isoformat(),
            "fraction": alert.fraction,
            "spent_nusd": alert.spent_nusd,
            "limit_nusd": alert.limit_nusd,
        },
    )


def raised(ledger: Ledger, since: datetime | None = None) -> list[Alert]:
    """All alerts raised from `since` on, oldest first."""
    query = select(ALERTS).order_by(ALERTS.c.created_at, ALERTS.c.scope, ALERTS.c.fraction)
    if since is not None:
        query = query.where(ALERTS.c.created_at >= since)
    with ledger.read() as connection:
        return [Alert(**row._asdict()) for row in connection.execute(query)]


def _row(alert: Alert) -> dict[str, Any]:
    return {item.name: getattr(alert, item.name) for item in fields(alert)}

"""Budgets: does an amount still fit, and if not, what happens.

    grant = decide(standings, 1_500)       # pure; `LedgerWriter.reserve` calls it in a transaction
    grant.granted, grant.act, grant.resets_at
    status(ledger, settings, now)          # every configured budget and how it stands

A budget bounds a scope (`team:NAME`, `key:KEY_ID` or `endpoint:NAME`) over calendar windows in
UTC: hour, day, week from Monday, month. A request counts in the windows in which it arrived, as
in the cost report. What counts is what was charged plus what is held for requests in progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select

from factory.config import Budget, Settings, Window
from factory.ledger import spend
from factory.ledger.money import usd
from factory.ledger.schema import API_KEYS

if TYPE_CHECKING:
    from factory.ledger.store import Ledger

Act = Literal["refuse", "cheap_tiers", "review"]
"""What happens when an amount does not fit; see `Budget.at_limit`."""

_STRICTNESS: dict[Act, int] = {"cheap_tiers": 0, "review": 1, "refuse": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one bounded window of one scope stands."""

    scope: str
    """`team:NAME`, `key:KEY_ID` or `endpoint:NAME`."""
    window: Window
    starts_at: datetime
    resets_at: datetime
    """The window's end, when the whole limit is there again."""
    limit_nusd: int
    spent_nusd: int
    """Charged to requests that arrived in the window."""
    reserved_nusd: int
    """Held for requests in progress."""
    act: Act
    """What happens when an amount does not fit."""

    @property
    def left_nusd(self) -> int:
        """What may still be reserved; negative after an overspend."""
        return self.limit_nusd - self.spent_nusd - self.reserved_nusd

    @property
    def share(self) -> float:
        """Spent and held, as a part of the limit; 1.0 for a limit of nothing."""
        if not self.limit_nusd:
            return 1.0
        return (self.spent_nusd + self.reserved_nusd) / self.limit_nusd

    def as_dict(self) -> dict[str, Any]:
        """Plain values; money as exact US dollars in text."""
        return {
            "scope": self.scope,
            "window": self.window,
            "limit_usd": usd(self.limit_nusd),
            "spent_usd": usd(self.spent_nusd),
            "reserved_usd": usd(self.reserved_nusd),
            "left_usd": usd(self.left_nusd),
            "share": round(self.share, 6),
            "at_limit": self.act,
            "starts_at": self.starts_at.isoformat(),
            "resets_at": self.resets_at.isoformat(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Whether an amount may be spent. The fields from `act` on are those of the budget that says
    no, and None when it is granted."""

    granted: bool
    act: Act | None = None
    """What to do instead: answer 429, try a cheaper tier that fits, or ask a person."""
    scope: str | None = None
    window: Window | None = None
    resets_at: datetime | None = None
    """When to ask again, for `Retry-After`."""
    reasons: tuple[str, ...] = ()
    """One sentence for each budget in which the amount does not fit, the deciding one first."""


GRANTED = Grant(granted=True)


def decide(standings: Sequence[Standing], amount_nusd: int, *, approved: bool = False) -> Grant:
    """Whether `amount_nusd` more fits into every one of `standings`.

    It fits when spent + reserved + amount <= limit. When several budgets say no, the strictest
    act holds (refuse, then review, then cheap_tiers), and of those the one that resets last.
    Nothing (an amount of 0) fits always. `approved` means a person allowed it: budgets whose act
    is `review` are passed over, all others still hold.
    """
    if amount_nusd <= 0:
        return GRANTED
    full = [
        standing
        for standing in standings
        if amount_nusd > standing.left_nusd and not (approved and standing.act == "review")
    ]
    if not full:
        return GRANTED
    full.sort(key=lambda item: (_STRICTNESS[item.act], item.resets_at), reverse=True)
    first = full[0]
    return Grant(
        granted=False,
        act=first.act,
        scope=first.scope,
        window=first.window,
        resets_at=first.resets_at,
        reasons=tuple(_reason(standing, amount_nusd) for standing in full),
    )


def bounded(budgets: Mapping[str, Budget]) -> dict[str, Budget]:
    """Those of `budgets`, by scope, that have a limit at all."""
    return {scope: budget for scope, budget in budgets.items() if budget.limits_nusd}


def configured(settings: Settings) -> dict[str, Budget]:
    """The budgets of the teams and endpoints of `factory.yaml`, by scope."""
    teams = {f"team:{name}": team.budget for name, team in settings.teams.items()}
    return bounded(
        teams | {f"endpoint:{name}": each.budget for name, each in settings.endpoints.items()}
    )


def standing(place: spend.Place, amounts: spend.Amounts, limit_nusd: int, act: Act) -> Standing:
    """The standing of one row of `spend` against its limit."""
    return Standing(
        scope=place.scope,
        window=place.window,
        starts_at=place.starts_at,
        resets_at=spend.ends_at(place.window, place.starts_at),
        limit_nusd=limit_nusd,
        spent_nusd=amounts.spent_nusd,
        reserved_nusd=amounts.reserved_nusd,
        act=act,
    )


def status(ledger: Ledger, settings: Settings, now: datetime) -> list[Standing]:
    """Every budget of a team, an endpoint or a key that is not revoked, as it stands at `now`."""
    found = []
    with ledger.read() as connection:
        keys = connection.execute(
            select(API_KEYS.c.key_id, API_KEYS.c.budget)
            .where(API_KEYS.c.revoked_at.is_(None))
            .order_by(API_KEYS.c.created_at, API_KEYS.c.key_id)
        )
        budgets = configured(settings) | bounded(
            {f"key:{row.key_id}": Budget.model_validate(row.budget) for row in keys}
        )
        bounds = [
            (spend.place(scope, window, now), limit, budget.at_limit)
            for scope, budget in budgets.items()
            for window, limit in budget.limits_nusd.items()
        ]
        rows = spend.load(connection, [place for place, _, _ in bounds])
        for place, limit, act in bounds:
            amounts = rows.get(place) or spend.recomputed(connection, place)
            found.append(standing(place, amounts, limit, act))
    return found


def _reason(standing: Standing, amount_nusd: int) -> str:
    resets = standing.resets_at.astimezone(UTC)
    return (
        f"{usd(amount_nusd)} USD more does not fit the budget of {standing.scope} for the "
        f"{standing.window}: limit {usd(standing.limit_nusd)} USD, spent "
        f"{usd(standing.spent_nusd)}, reserved {usd(standing.reserved_nusd)}; it resets at "
        f"{resets:%Y-%m-%dT%H:%M}Z"
    )

"""What a scrape reads from the ledger: budgets that run out, jobs that wait, zones that are out.

    books = read(ledger, settings, now)
    books.remaining["team:support", "day"]      # 0.35: a third of today's budget is left
    books.waits_s["research"]                   # 840.0: its longest waiting job, in seconds

Four small queries. Budgets of single keys are left out: there may be any number of keys, and
`factory budgets` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select

from factory.config import Settings
from factory.ledger.budgets import status
from factory.ledger.schema import JOBS
from factory.ledger.store import Ledger
from factory.ledger.zones import newest

OPEN = ("waiting", "starting", "running", "stopping")
"""States of a job that has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Budgets and jobs at one moment."""

    remaining: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By scope and window: what is neither spent nor held, as a share of the limit; negative after
    an overspend."""
    waits_s: Mapping[str, float] = field(default_factory=dict)
    """By team: the longest wait of a job that only room keeps from starting; 0 without one."""
    jobs: Mapping[str, int] = field(default_factory=dict)
    """Jobs that have not ended, by state."""
    zones: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    """Whether a node could be had when last asked, by spot pool and zone."""


def read(ledger: Ledger, settings: Settings, now: datetime) -> Books:
    """The books at `now`. Raises `LedgerError`."""
    standings = status(ledger, settings, now)
    waits_s = dict.fromkeys(settings.teams, 0.0)
    jobs = dict.fromkeys(OPEN, 0)
    room = select(JOBS.c.team, JOBS.c.waited_s, JOBS.c.eligible_at).where(
        JOBS.c.state == "waiting", JOBS.c.eligible_at.is_not(None)
    )
    counts = select(JOBS.c.state, func.count()).where(JOBS.c.state.in_(OPEN)).group_by(JOBS.c.state)
    with ledger.read() as connection:
        for team, waited_s, since in connection.execute(room):
            waited = waited_s + max(0.0, (now - since).total_seconds())
            waits_s[team] = max(waits_s.get(team, 0.0), waited)
        zones = {(look.pool, look.zone): look.up for look in newest(connection)}
        jobs |= {state: count for state, count in connection.execute(counts)}
    remaining: dict[tuple[str, str], float] = {
        (one.scope, one.window): 1 - one.share
        for one in standings
        if not one.scope.startswith("key:")
    }
    return Books(remaining=remaining, waits_s=waits_s, jobs=jobs, zones=zones)

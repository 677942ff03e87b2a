"""Leases: slices of budgets that one gateway holds, and grants requests from without the database.

    lease = Lease(name="lease-1", of=reservation)
    lease.grant("r1", 1_500)          # False: ask the database
    lease.settle("r1", 1_200)         # 300 are free again, 1_200 wait to be charged
    wish = lease.leave()              # what the next transaction shall make of its row
    lease.land(wish, total)           # ... and what it made of it

All of it is arithmetic on integers of nano-dollars. What a lease holds is held in the table
`reservations` like any other reservation, so other gateways can never spend it. A lease never
grants more than its row holds, and its row shrinks by what was spent in the very transaction that
charges it. So the budgets of a lease's requests are never overspent by more than what a single
request cost above its own estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from factory.config import Budget
from factory.ledger import spend
from factory.ledger.budgets import Standing
from factory.ledger.reservations import Reservation

SHARE = 16
"""A lease takes at most this part of what is left, so near a limit leases vanish by themselves."""

AHEAD = 64
"""A lease is wished to last for so many requests like the largest one so far."""

Scope = tuple[str, str, str | None, datetime, bool, tuple[tuple[str, Budget], ...]]
"""What requests of one lease have in common: team, endpoint, key, hour, approval, budgets."""


def scope_of(wanted: Reservation) -> Scope:
    """The lease that a request may draw on: those of its hour count in the same windows."""
    hour = spend.starts_at("hour", wanted.created_at)
    budgets = tuple(wanted.budgets.items())
    return wanted.team, wanted.endpoint, wanted.key_id, hour, wanted.approved, budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a transaction shall make of a lease's row."""

    name: str
    """The row's `request_id`."""
    of: Reservation
    """Any of its requests: who is charged, in which windows, under which budgets."""
    bound_nusd: int
    """Granted, or about to be while the transaction runs: the row never falls below it."""
    free_nusd: int
    """More, for requests to come, as far as the budgets allow."""
    least_nusd: int = 0
    """Less than this is of no use."""


def sliced(wish: Wish, standings: Sequence[Standing], held_nusd: int) -> int:
    """What a lease's row shall hold, of which it holds `held_nusd` already.

    What is granted stays. Beside it the lease gets at most a `SHARE`th of what is left in the
    tightest of its budgets.
    """
    if not standings:
        return wish.bound_nusd
    left = min(one.left_nusd for one in standings) + held_nusd - wish.bound_nusd
    free = min(wish.free_nusd, max(left, 0) // SHARE)
    return wish.bound_nusd + (free if free >= wish.least_nusd else 0)


@dataclass(slots=True, kw_only=True)
class Lease:
    """One slice, as its gateway sees it."""

    name: str
    of: Reservation
    total_nusd: int = 0
    """What the row holds in the database, as of the last transaction."""
    consumed_nusd: int = 0
    """Spent, but not charged in the database yet; the row still covers it."""
    grants: dict[str, int] = field(default_factory=dict)
    """Held by requests in progress, by request."""
    room_nusd: int | None = None
    """While a transaction runs: what may still be granted before it has ended."""
    largest_nusd: int = 0
    """The largest single grant so far."""
    used_at: float = 0.0
    """When it was last granted from; set by its holder."""
    leaving_nusd: int = 0
    """That part of `consumed_nusd` that the running transaction charges."""

    @property
    def held_nusd(self) -> int:
        """Held by requests in progress."""
        return sum(self.grants.values())

    @property
    def free_nusd(self) -> int:
        """What may be granted now."""
        free = self.total_nusd - self.held_nusd - self.consumed_nusd
        return free if self.room_nusd is None else min(free, self.room_nusd)

    @property
    def empty(self) -> bool:
        """Nothing of it is left, here or in the database."""
        return not (self.total_nusd or self.grants or self.consumed_nusd)

    def grant(self, request_id: str, amount_nusd: int) -> bool:
        """Let a request hold `amount_nusd` in all; False, with nothing changed, if too much."""
        growth = amount_nusd - self.grants.get(request_id, 0)
        if growth > self.free_nusd:
            return False
        if growth > 0:
            self.grants[request_id] = amount_nusd
            if self.room_nusd is not None:
                self.room_nusd -= growth
        self.largest_nusd = max(self.largest_nusd, amount_nusd)
        return True

    def settle(self, request_id: str, cost_nusd: int) -> None:
        """A request is over: what it cost waits to be charged, the rest is free again."""
        if self.grants.pop(request_id, None) is not None:
            self.consumed_nusd += cost_nusd

    def release(self, request_id: str) -> None:
        """A request goes on without this lease."""
        self.grants.pop(request_id, None)

    def leave(self, least_nusd: int = 0, *, returns: bool = False) -> Wish:
        """Begin a transaction, which charges all that was consumed; see `land`.

        One that `returns` keeps only what is granted.
        """
        wanted = 0 if returns else AHEAD * max(self.largest_nusd, least_nusd)
        self.room_nusd = max(0, min(self.free_nusd, wanted))
        self.leaving_nusd = self.consumed_nusd
        return Wish(
            name=self.name,
            of=self.of,
            bound_nusd=self.held_nusd + self.room_nusd,
            free_nusd=max(0, wanted - self.room_nusd),
            least_nusd=max(0, least_nusd - self.room_nusd),
        )

    def land(self, total_nusd: int | None) -> None:
        """End it: the row holds `total_nusd` now; None when nothing was changed."""
        if total_nusd is not None:
            self.total_nusd = total_nusd
            self.consumed_nusd -= self.leaving_nusd
        self.room_nusd, self.leaving_nusd = None, 0

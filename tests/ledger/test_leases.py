"""A lease never grants more than its row holds, whatever happens while a transaction runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from factory.config import Budget
from factory.ledger import spend
from factory.ledger.budgets import standing
from factory.ledger.leases import SHARE, Lease, Wish, scope_of, sliced
from factory.ledger.reservations import Reservation
from factory.ledger.spend import Amounts
from tests.ledger.conftest import NOON, _budget

LIMIT = 100_000
WANTED = Reservation(
    request_id="r",
    created_at=NOON,
    team="support",
    endpoint="helpdesk",
    amount_nusd=0,
    budgets={"team:support": _budget(daily=LIMIT)},
)
amounts = st.integers(1, 900)


class Leasing(RuleBasedStateMachine):
    """One lease, the row that it has, and another gateway that spends the same budget."""

    def __init__(self) -> None:
        super().__init__()
        self.lease = Lease(name="lease-1", of=WANTED)
        self.row = self.spent = self.others = 0
        self.wish: Wish | None = None
        self.leaving = self.already = self.count = 0
        self.down = False

    @precondition(lambda self: not self.down)
    @rule(amount=amounts)
    def grant(self, amount: int) -> None:
        free = self.lease.free_nusd
        self.count += 1
        assert self.lease.grant(f"r{self.count}", amount) == (amount <= free)

    @precondition(lambda self: self.lease.grants and not self.down)
    @rule(more=amounts)
    def grow(self, more: int) -> None:
        name = next(iter(self.lease.grants))
        self.lease.grant(name, self.lease.grants[name] + more)

    @precondition(lambda self: self.lease.grants)
    @rule(part=st.floats(0, 1))
    def settle(self, part: float) -> None:
        name, held = next(iter(self.lease.grants.items()))
        self.lease.settle(name, int(held * part))

    @precondition(lambda self: self.lease.grants)
    @rule()
    def release(self) -> None:
        self.lease.release(next(iter(self.lease.grants)))

    @precondition(lambda self: self.wish is None)
    @rule(returns=st.booleans(), least=st.one_of(st.just(0), amounts))
    def leave(self, returns: bool, least: int) -> None:
        self.leaving = self.lease.consumed_nusd
        self.wish = self.lease.leave(least, returns=returns)

    @precondition(lambda self: self.wish is not None)
    @rule(commits=st.booleans(), told=st.booleans())
    def land(self, commits: bool, told: bool) -> None:
        assert self.wish is not None
        total = None
        if commits:
            # What was charged by a transaction nobody heard of is not charged again.
            self.spent += self.leaving - self.already
            self.already = 0 if told else self.leaving
            reserved = self.row + self.others
            place = spend.place("team:support", "day", NOON)
            stands = standing(place, Amounts(self.spent, reserved), LIMIT, "refuse")
            total = self.row = sliced(self.wish, [stands], self.row)
            assert total >= self.wish.bound_nusd
        self.wish = None
        self.down = not (commits and told)
        self.lease.land(total if told else None)

    @precondition(lambda self: self.wish is None)
    @rule(amount=st.integers(1, 20_000))
    def others_spend(self, amount: int) -> None:
        if self.spent + self.row + self.others + amount <= LIMIT:
            self.others += amount

    @invariant()
    def the_row_covers_everything(self) -> None:
        assert self.row >= self.lease.held_nusd + self.lease.consumed_nusd - self.already
        assert self.spent + self.row + self.others <= LIMIT


TestLeasing = Leasing.TestCase


def test_near_a_limit_a_lease_gets_nothing(budget: Callable[..., Budget]) -> None:
    place = spend.place("team:support", "day", NOON)
    wish = Wish(name="lease-1", of=WANTED, bound_nusd=50, free_nusd=900, least_nusd=10)
    left = {100_000: 950, 1_600 + 50: 150, 150: 50, 40: 50}
    for amount, total in left.items():
        stands = standing(place, Amounts(LIMIT - amount, 0), LIMIT, "refuse")
        assert sliced(wish, [stands], 0) == total
    assert SHARE == 16


def test_a_lease_belongs_to_one_hour_one_payer_and_its_budgets(
    budget: Callable[..., Budget],
) -> None:
    def wanted(minutes: int = 0, **more: object) -> Reservation:
        values = {"request_id": "r", "team": "support", "endpoint": "helpdesk", "amount_nusd": 1}
        return Reservation(created_at=NOON + timedelta(minutes=minutes), **values | more)  # type: ignore[arg-type]

    assert scope_of(wanted()) == scope_of(wanted(59))
    others = [
        wanted(60),
        wanted(key_id="k"),
        wanted(approved=True),
        wanted(budgets={"team:support": budget(daily=1)}),
    ]
    assert len({scope_of(one) for one in [wanted(), *others]}) == 5

"""The money one request may hold: its own bound, and the budgets of key, team and endpoint.

    denial = await purse.hold(1_200_000)    # None: held until the request is settled

Each attempt is held before it begins, so that a budget is never overspent by more than what an
attempt cost above its own estimate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from factory.config import NANO, Budget
from factory.gateway.call import Call
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.journey import Journey
from factory.ledger.budgets import Grant, bounded
from factory.ledger.errors import LedgerError
from factory.ledger.money import usd
from factory.ledger.reservations import Reservation
from factory.ledger.reviews import Stage

Hold = Callable[[Journey, Call[Any], Stage, tuple[str, ...]], Awaitable[ApiError]]
"""Puts a request before a person; the error says where to ask for the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Why an attempt cannot be paid."""

    error: ApiError
    """What the client is told when nothing else can answer."""
    final: bool
    """No cheaper attempt is wanted instead."""


class Bank(Protocol):
    """Who holds money: `factory.ledger.writer.LedgerWriter`."""

    def at_once(self, reservation: Reservation) -> bool:
        """Hold an amount if that needs nobody to be asked. Raises `LedgerError`."""
        ...

    async def reserve(self, reservation: Reservation) -> Grant:
        """Hold an amount, or say why not. Raises `LedgerError`."""
        ...


@dataclass(slots=True, kw_only=True)
class Purse:
    """The money of one request."""

    bank: Bank
    journey: Journey
    call: Call[Any]
    budgets: dict[str, Budget]
    """Those that the request counts against, by scope."""
    review: Hold
    """Asks a person, for budgets that want it."""
    held_nusd: int = field(default=0, init=False)

    async def hold(self, most_nusd: int, exactly: Callable[[], int] | None = None) -> Denial | None:
        """Hold money for the next attempt beside what is spent; None when it is held.

        `most_nusd` may be an upper bound; where it does not fit, `exactly` says the amount.
        """
        if self._too_expensive(most_nusd) is None:
            if not self.budgets or self.journey.cost_nusd + most_nusd <= self.held_nusd:
                return None
            wanted = self._wanted(most_nusd)
            try:
                at_once = self.bank.at_once(wanted)
            except LedgerError as error:
                raise _no_money_now() from error
            if at_once:
                self.held_nusd = wanted.amount_nusd
                return None
        amount_nusd = most_nusd if exactly is None else exactly()
        if denial := self._too_expensive(amount_nusd):
            return denial
        if not self.budgets or self.journey.cost_nusd + amount_nusd <= self.held_nusd:
            return None
        wanted = self._wanted(amount_nusd)
        try:
            grant = await self.bank.reserve(wanted)
        except LedgerError as error:
            raise _no_money_now() from error
        if grant.granted:
            self.held_nusd = wanted.amount_nusd
            return None
        return await self._denied(grant)

    def _wanted(self, amount_nusd: int) -> Reservation:
        journey = self.journey
        return Reservation(
            request_id=journey.request_id,
            created_at=journey.created_at,
            team=journey.key.team,
            endpoint=journey.endpoint,
            key_id=journey.key.key_id,
            amount_nusd=journey.cost_nusd + amount_nusd,
            budgets=self.budgets,
            approved=self.call.approved,
        )

    async def _denied(self, grant: Grant) -> Denial:
        if grant.act == "review":
            held = await self.review(self.journey, self.call, "budget", grant.reasons)
            return Denial(error=held, final=True)
        headers = {}
        if grant.resets_at is not None:
            wait = (grant.resets_at - self.journey.clock.now()).total_seconds()
            headers["Retry-After"] = str(max(1, round(wait)))
        error = ApiError(429, "budget_exceeded", grant.reasons[0], headers=headers)
        return Denial(error=error, final=grant.act == "refuse")

    def _too_expensive(self, amount_nusd: int) -> Denial | None:
        most = self.call.limits.max_request_usd
        if most is None or self.journey.cost_nusd + amount_nusd <= most * NANO:
            return None
        message = (
            f"this attempt may cost ${usd(amount_nusd)}, which takes the request above the "
            f"${most} that one may cost (max_request_usd); lower max_tokens"
        )
        error = ApiError(400, "request_too_expensive", message, param="max_tokens")
        return Denial(error=error, final=False)


def _no_money_now() -> ApiError:
    return unavailable(
        "the ledger cannot reserve money for this request, so no model is asked; try again soon"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Purses:
    """Makes the purse of a request; the budgets of the configuration are looked up once."""

    bank: Bank
    review: Hold
    budgets: dict[str, Budget]
    """Of teams and endpoints, by scope; see `factory.ledger.budgets.configured`."""

    def of(self, journey: Journey, call: Call[Any]) -> Purse:
        """The purse of one request."""
        key = journey.key
        names = (f"team:{key.team}", f"endpoint:{call.name}")
        budgets = {name: self.budgets[name] for name in names if name in self.budgets}
        budgets |= bounded({f"key:{key.key_id}": key.budget})
        return Purse(
            bank=self.bank, journey=journey, call=call, budgets=budgets, review=self.review
        )

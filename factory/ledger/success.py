"""What a success cost, people's time counted, and how much traffic the cheapest viable tier took.

    report = ledger.costs()
    report.success.total.cost_per_success_nusd, report.success.total.cheapest_viable_share

Pure; `report.costs_report` and `costs.costs` count the same groups, `assemble` does the arithmetic.

*A successful outcome* is a request whose latest outcome says success. Only requests whose outcome
was reported are weighed, since nobody knows about the others: their charges (those of retries and
of thrown-away answers are among them), plus the human time at a stated price. Failed requests
have no answer to report about, but were paid for: of their cost the same share counts as of the
answered requests was reported.

*The cheapest viable tier* of a request is the lowest that would have been accepted. It is surely
the one that answered when every lower tier that the endpoint's traffic is answered by was tried
first, in this request, and not accepted. An answer that skipped such a tier, stood in for a
higher one (degraded), or failed by its outcome is not counted: the share is a lower bound. Rules
and caches (tier 0) are always tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from factory.config import NANO
from factory.ledger.money import usd
from factory.ledger.outcomes import Outcome
from factory.ledger.records import ChargeRecord, RequestRecord

HUMAN_NUSD_PER_HOUR = 45 * NANO
"""What an hour of a person costs unless told otherwise: 45 USD, wages and overhead."""

_MS_PER_HOUR = 3_600_000


class SuccessGroup(NamedTuple):
    """Requests that are alike in the first five fields, added up."""

    team: str
    endpoint: str
    tier: int | None
    model: str | None
    status: str
    requests: int
    reported: int
    succeeded: int
    human_ms: int
    cost_nusd: int
    reported_cost_nusd: int
    """The part of the cost whose requests have an outcome."""
    cheapest: int
    """Answered on the cheapest viable tier."""


@dataclass(frozen=True, slots=True)
class SuccessLine:
    """What the successes of one team, endpoint, model or tier cost."""

    name: str
    """Empty where no team, endpoint, model or tier is known."""
    answered: int
    reported: int
    """Requests whose outcome is known."""
    succeeded: int
    human_minutes: float
    cost_nusd: int
    """Charges of the reported requests, and the like share of those of failed ones."""
    human_nusd: int
    """The human minutes at the stated price."""
    cheapest: int
    """Answered on the cheapest viable tier; a lower bound."""

    @property
    def cost_per_success_nusd(self) -> int | None:
        """Charges and human time by successes; None without a success."""
        if not self.succeeded:
            return None
        return _divided(self.cost_nusd + self.human_nusd, self.succeeded)

    @property
    def success_rate(self) -> float | None:
        """Successes by reported outcomes, from 0 to 1; None without a report."""
        return self.succeeded / self.reported if self.reported else None

    @property
    def cheapest_viable_share(self) -> float | None:
        """Of the answered requests, from 0 to 1; None when nothing was answered."""
        return self.cheapest / self.answered if self.answered else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: integers in `*_nusd`, exact decimal text in `*_usd`."""
        each = self.cost_per_success_nusd
        return {
            "name": self.name,
            "answered": self.answered,
            "reported": self.reported,
            "succeeded": self.succeeded,
            "success_rate": self.success_rate,
            "human_minutes": self.human_minutes,
            "cost_nusd": self.cost_nusd,
            "cost_usd": usd(self.cost_nusd),
            "human_nusd": self.human_nusd,
            "human_usd": usd(self.human_nusd),
            "cost_per_success_nusd": each,
            "cost_per_success_usd": None if each is None else usd(each),
            "cheapest_viable_share": self.cheapest_viable_share,
        }


@dataclass(frozen=True, slots=True)
class SuccessReport:
    """What successes cost; `total` has the sums, the rest are its parts."""

    human_nusd_per_hour: int
    total: SuccessLine
    by_team: tuple[SuccessLine, ...]
    by_endpoint: tuple[SuccessLine, ...]
    by_model: tuple[SuccessLine, ...]
    """By the model that answered."""
    by_tier: tuple[SuccessLine, ...]
    """By the tier that answered."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        total = self.total.as_dict()
        del total["name"]
        return {
            "human_usd_per_hour": usd(self.human_nusd_per_hour),
            **total,
            "by_team": [line.as_dict() for line in self.by_team],
            "by_endpoint": [line.as_dict() for line in self.by_endpoint],
            "by_model": [line.as_dict() for line in self.by_model],
            "by_tier": [line.as_dict() for line in self.by_tier],
        }


def success_groups(
    requests: Sequence[RequestRecord],
    charges: Iterable[ChargeRecord],
    outcomes: Mapping[str, Outcome],
) -> list[SuccessGroup]:
    """The groups of `requests`; `outcomes` has those that count, by request_id."""
    tried: dict[str, set[int]] = defaultdict(set)
    for charge in charges:
        if charge.tier is not None:
            tried[charge.request_id].add(charge.tier)
    accepted: dict[str, set[int]] = defaultdict(set)
    for request in requests:
        if request.status == "ok" and request.tier and not request.degraded:
            accepted[request.endpoint].add(request.tier)
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 7)
    for request in requests:
        outcome = outcomes.get(request.request_id)
        cheapest = (
            request.status == "ok"
            and request.tier is not None
            and not request.degraded
            and (outcome is None or outcome.success)
            and all(
                lower in tried[request.request_id]
                for lower in accepted[request.endpoint]
                if lower < request.tier
            )
        )
        values = (
            1,
            int(outcome is not None),
            int(outcome is not None and outcome.success),
            outcome.human_ms if outcome else 0,
            request.cost_nusd,
            request.cost_nusd if outcome else 0,
            int(cheapest),
        )
        key = (request.team, request.endpoint, request.tier, request.model, request.status)
        sums[key] = [old + new for old, new in zip(sums[key], values, strict=True)]
    return [SuccessGroup(*key, *values) for key, values in sums.items()]


def assemble_success(
    groups: Sequence[SuccessGroup], human_nusd_per_hour: int = HUMAN_NUSD_PER_HOUR
) -> SuccessReport:
    """The report from its groups; the only place where anything is computed."""

    def lines(name: Callable[[SuccessGroup], str]) -> tuple[SuccessLine, ...]:
        named: dict[str, list[SuccessGroup]] = defaultdict(list)
        for group in groups:
            named[name(group)].append(group)
        return tuple(_line(key, named[key], human_nusd_per_hour) for key in sorted(named))

    return SuccessReport(
        human_nusd_per_hour=human_nusd_per_hour,
        total=_line("total", groups, human_nusd_per_hour),
        by_team=lines(lambda group: group.team),
        by_endpoint=lines(lambda group: group.endpoint),
        by_model=lines(lambda group: group.model or ""),
        by_tier=lines(lambda group: "" if group.tier is None else str(group.tier)),
    )


def _line(name: str, groups: Sequence[SuccessGroup], human_nusd_per_hour: int) -> SuccessLine:
    ok = [group for group in groups if group.status == "ok"]
    answered = sum(group.requests for group in ok)
    known = sum(group.reported for group in ok)
    failed = sum(
        group.cost_nusd - group.reported_cost_nusd for group in groups if group.status == "error"
    )
    human_ms = sum(group.human_ms for group in groups)
    return SuccessLine(
        name=name,
        answered=answered,
        reported=sum(group.reported for group in groups),
        succeeded=sum(group.succeeded for group in groups),
        human_minutes=human_ms / 60_000,
        cost_nusd=sum(group.reported_cost_nusd for group in groups)
        + (_divided(failed * known, answered) if answered else 0),
        human_nusd=_divided(human_ms * human_nusd_per_hour, _MS_PER_HOUR),
        cheapest=sum(group.cheapest for group in groups),
    )


def _divided(amount: int, by: int) -> int:
    """To the nearest integer."""
    return (2 * amount + by) // (2 * by)

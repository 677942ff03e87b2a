"""Quota with borrowing: what a team may still take, what it borrows. Pure.

    shares = Shares.of(settings)
    shares.available("research", "cpus", usage)   # what fits now, borrowed included
    shares.borrowed("research", "cpus", usage)    # what others may take back

Teams and cohorts form trees. A node owns its nominal quota and what its children lend it. A child
first uses what it keeps for itself (nominal quota above its lending limit), then draws on its
parent: on its own share that lies there, and on at most its borrowing limit beyond. The terms and
their meaning are Kueue's (kueue.sigs.k8s.io, "Cluster Queue" and "Cohort").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from factory.config import Quota, Resource, ResourceQuota, Settings
from factory.config.jobs import cycle

Usage = Mapping[str, float]
"""What each team holds of one resource."""
EPSILON = 1e-9
"""Sums of fractions of a CPU are compared with this tolerance."""


@dataclass(frozen=True)
class Shares:
    """The quotas of all teams and the cohorts above them."""

    teams: Mapping[str, Quota]
    cohorts: Mapping[str, Quota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.cohorts:
            cycle(self.cohorts, name)

    @classmethod
    def of(cls, settings: Settings) -> Shares:
        """The quotas of a configuration."""
        return cls(
            {name: team.quota for name, team in settings.teams.items()}, settings.jobs.cohorts
        )

    def bounded(self, team: str, resource: Resource) -> bool:
        """Whether the team has a quota of this resource at all."""
        return team in self.teams and self.teams[team].of(resource) is not None

    def nominal(self, team: str, resource: Resource) -> float:
        """What is guaranteed; 0 for a team without a quota."""
        return self._own("team", team, resource).nominalQuota

    def borrowed(self, team: str, resource: Resource, usage: Usage) -> float:
        """What a team holds beyond its guarantee: all of it, when it has none."""
        return max(0.0, usage.get(team, 0.0) - self.nominal(team, resource))

    def most(self, team: str, resource: Resource) -> float:
        """What the team could hold if nobody else held anything."""
        return self.available(team, resource, {})

    def available(self, team: str, resource: Resource, usage: Usage) -> float:
        """What the team may take on top of what it holds, borrowing included; never negative."""
        if not self.bounded(team, resource):
            return inf
        return max(0.0, self._available("team", team, resource, usage))

    def share(
        self, team: str, usage: Mapping[Resource, Usage], total: Mapping[Resource, float]
    ) -> float:
        """The team's dominant share of `total`, divided by its weight: lowest goes first."""
        parts = [
            held.get(team, 0.0) / total[resource]
            for resource, held in usage.items()
            if total.get(resource, 0.0) > 0
        ]
        weight = self.teams[team].weight if team in self.teams else 1.0
        return max(parts, default=0.0) / weight

    def root(self, team: str) -> str | None:
        """The top cohort above a team; None when it stands alone."""
        cohort = self.teams[team].cohort if team in self.teams else None
        return None if cohort is None else cycle(self.cohorts, cohort)[-1]

    @cached_property
    def _children(self) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for kind, members in (("team", self.teams), ("cohort", self.cohorts)):
            for name, quota in members.items():
                if quota.cohort is not None:
                    found.setdefault(quota.cohort, []).append((kind, name))
        return found

    def _own(self, kind: str, name: str, resource: Resource) -> ResourceQuota:
        quota = (self.teams if kind == "team" else self.cohorts).get(name)
        return (quota.of(resource) if quota is not None else None) or ResourceQuota()

    def _subtree(self, kind: str, name: str, resource: Resource) -> float:
        """Own quota and what the children lend."""
        own = self._own(kind, name, resource).nominalQuota
        if kind == "team":
            return own
        return own + sum(
            self._subtree(*child, resource) - self._kept(*child, resource)
            for child in self._children.get(name, ())
            if not (child[0] == "team" and not self.bounded(child[1], resource))
        )

    def _kept(self, kind: str, name: str, resource: Resource) -> float:
        """What is lent to nobody."""
        limit = self._own(kind, name, resource).lendingLimit
        return 0.0 if limit is None else max(0.0, self._subtree(kind, name, resource) - limit)

    def _used(self, kind: str, name: str, resource: Resource, usage: Usage) -> float:
        if kind == "team":
            return usage.get(name, 0.0)
        return sum(
            max(0.0, self._used(*child, resource, usage) - self._kept(*child, resource))
            for child in self._children.get(name, ())
            if not (child[0] == "team" and not self.bounded(child[1], resource))
        )

    def _available(self, kind: str, name: str, resource: Resource, usage: Usage) -> float:
        quota = (self.teams if kind == "team" else self.cohorts).get(name)
        subtree = self._subtree(kind, name, resource)
        used = self._used(kind, name, resource, usage)
        if quota is None or quota.cohort is None:
            return subtree - used
        kept = self._kept(kind, name, resource)
        above = self._available("cohort", quota.cohort, resource, usage)
        limit = self._own(kind, name, resource).borrowingLimit
        if limit is not None:
            above = min(above, subtree - kept - max(0.0, used - kept) + limit)
        return max(0.0, kept - used) + above

"""Which jobs start, which wait and why, which make room. Pure: plain values in, a plan out.

    plan = admit(now, waiting, running, pools, shares, patience_s=600)
    plan.starts, plan.preemptions, plan.waits      # each with its reason

A job is a gang: `workers` equal parts that fit nodes of one pool all at once, or none starts.
Order: priority class; within it jobs that have waited too long, then those whose deadline forces
them, then teams by weighted dominant share of what they hold, then the order of submission.
A team takes back what it is guaranteed from those who borrow, whatever their class; within a team
higher classes displace lower ones. A job that may not be preempted never borrows, so that every
guarantee can be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from factory.cluster.queue.quota import EPSILON, Shares
from factory.config import RESOURCES, Resource

Amounts = Mapping[Resource, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One job as admission sees it."""

    id: str
    team: str
    order: int
    """Place in the order of submission; kept through preemptions and retries."""
    priority: int = 50
    preemptible: bool = True
    workers: int = 1
    need: Amounts = field(default_factory=dict)
    """What one worker takes."""
    pools: tuple[str, ...] = ()
    """Where it may run, best first."""
    waited_s: float = 0.0
    """Seconds for which nothing but capacity and quota has kept it."""
    forced: bool = False
    """Its deadline is missed unless it starts now."""

    @property
    def total(self) -> dict[Resource, float]:
        """What all workers take."""
        return {resource: self.workers * amount for resource, amount in self.need.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A job that holds resources."""

    ask: Ask
    pool: str
    since: float
    """When it started, seconds since the epoch."""
    leaving: bool = False
    """It is being stopped: what it holds will be free."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pool has: its nodes, existing or to be had, less what other work takes there."""

    nodes: tuple[Amounts, ...]
    others: Amounts = field(default_factory=dict)
    """Taken by what the queue does not know: served models, interactive work."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a job in a pool."""

    id: str
    pool: str
    reason: str


@dataclass(frozen=True, slots=True)
class Preempt:
    """Stop a job, through its checkpoint, to make room for another."""

    id: str
    for_job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job does not start, and its place in the queue, from 1."""

    id: str
    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    starts: tuple[Start, ...]
    preemptions: tuple[Preempt, ...]
    waits: tuple[Wait, ...]


def admit(
    waiting: Sequence[Ask],
    running: Sequence[Held],
    pools: Mapping[str, Capacity],
    shares: Shares,
    *,
    patience_s: float,
) -> Plan:
    """Decide over all jobs that wait for nothing but room. `running` includes those leaving."""
    return _Admission(running, pools, shares, patience_s).decide(waiting)


def too_large(ask: Ask, pools: Mapping[str, Capacity], shares: Shares) -> str | None:
    """Why the job could never start, even alone; None when it could."""
    for resource, amount in ask.total.items():
        most = shares.most(ask.team, resource)
        if not ask.preemptible and shares.bounded(ask.team, resource):
            most = shares.nominal(ask.team, resource)
        if amount > most + EPSILON:
            why = "" if ask.preemptible else " (its class is not preemptible, so it may not borrow)"
            return (
                f"it asks for {_show({resource: amount})}, and team '{ask.team}' can never hold "
                f"more than {_show({resource: most})}{why}"
            )
    if not ask.pools:
        return "no pool may run it"
    if not any(_fits(ask, pools[name].nodes) for name in ask.pools if name in pools):
        return (
            f"{ask.workers} x {_show(ask.need)} is larger than any of the pools "
            f"{', '.join(ask.pools)}"
        )
    return None


class _Admission:
    """The state of one round: what is held, and what has been promised in this round."""

    def __init__(
        self,
        running: Sequence[Held],
        pools: Mapping[str, Capacity],
        shares: Shares,
        patience_s: float,
    ) -> None:
        self._pools = pools
        self._shares = shares
        self._patience_s = patience_s
        self._held = list(running)
        self._starts: list[Start] = []
        self._preemptions: list[Preempt] = []
        self._waits: list[Wait] = []
        self._taken: set[str] = set()
        """Jobs to which this round has given room."""
        self._closed: dict[str, str] = {}
        """Pools in which a job that has waited too long comes first."""
        self._lent_out: dict[str, str] = {}
        """Cohorts in which such a job is the next to borrow."""
        self._total: dict[Resource, float] = {
            resource: sum(node.get(resource, 0.0) for pool in pools.values() for node in pool.nodes)
            for resource in RESOURCES
        }

    def decide(self, waiting: Sequence[Ask]) -> Plan:
        left = list(waiting)
        while left:
            shares = self._team_shares({ask.team for ask in left})
            ask = min(left, key=lambda each: self._order(each, shares[each.team]))
            left.remove(ask)
            reason = self._try(ask)
            if reason is not None:
                self._waits.append(Wait(ask.id, len(self._waits) + 1, reason))
        return Plan(tuple(self._starts), tuple(self._preemptions), tuple(self._waits))

    def _team_shares(self, teams: Iterable[str]) -> dict[str, float]:
        usage = {resource: self._usage(resource, self._held) for resource in RESOURCES}
        return {team: self._shares.share(team, usage, self._total) for team in teams}

    def _order(self, ask: Ask, share: float) -> tuple[object, ...]:
        overdue = ask.waited_s >= self._patience_s
        return (-ask.priority, not overdue, not ask.forced, 0.0 if overdue else share, ask.order)

    def _try(self, ask: Ask) -> str | None:
        """Start the job, or make room for it; None, or why it waits."""
        never = too_large(ask, self._pools, self._shares)
        if never is not None:
            return never
        overdue = ask.waited_s >= self._patience_s
        if (why := self._over_quota(ask, self._held)) is None:
            free = [name for name in ask.pools if self._room(ask, name, self._held)]
            if open_ := [name for name in free if name not in self._closed]:
                borrowing = self._borrows(ask, self._held)
                root = self._shares.root(ask.team)
                if borrowing and root in self._lent_out:
                    return f"lets job {self._lent_out[root]} borrow first; it has waited longer"
                self._take(ask, open_[0])
                self._starts.append(
                    Start(ask.id, open_[0], self._why_started(ask, open_[0], borrowing))
                )
                return None
            if free:
                return f"lets job {self._closed[free[0]]} go first; it has waited longer"
            why = f"{', '.join(ask.pools)}: no room for {ask.workers} x {_show(ask.need)}"
        staying = [held for held in self._held if not held.leaving]
        for name in ask.pools:
            if name in self._closed or name not in self._pools:
                continue
            victims = self._victims(ask, name, staying)
            if victims is None:
                continue
            for victim, reason in victims:
                self._preemptions.append(Preempt(victim.ask.id, ask.id, reason))
                place = self._held.index(victim)
                self._held[place] = Held(
                    ask=victim.ask, pool=victim.pool, since=victim.since, leaving=True
                )
            # What the victims give back is promised: nobody else takes it in this round.
            self._take(ask, name)
            self._closed.setdefault(name, ask.id)
            names = ", ".join(victim.ask.id for victim, _ in victims)
            return f"waits for {names} to stop" if names else "waits for jobs that are stopping"
        if overdue:
            if self._over_quota(ask, self._held) is None:
                for name in ask.pools:
                    self._closed.setdefault(name, ask.id)
            elif (root := self._shares.root(ask.team)) is not None:
                self._lent_out.setdefault(root, ask.id)
        return why

    def _victims(
        self, ask: Ask, pool: str, staying: Sequence[Held]
    ) -> list[tuple[Held, str]] | None:
        """The fewest and least important jobs that have to stop; None when that is not enough."""
        entitled = not self._borrows(ask, staying)
        left, chosen = list(staying), list[tuple[Held, str]]()
        candidates = sorted(staying, key=lambda held: (held.ask.priority, -held.since))

        def enough(remaining: Sequence[Held]) -> bool:
            return self._over_quota(ask, remaining) is None and self._room(ask, pool, remaining)

        if not enough(left):
            for held in candidates:
                reason = self._may_displace(ask, held, left, entitled)
                if reason is None or held.ask.id in self._taken:
                    continue
                left.remove(held)
                chosen.append((held, reason))
                if enough(left):
                    break
            else:
                return None
        for item in list(chosen)[:-1]:
            if enough([*left, item[0]]):
                left.append(item[0])
                chosen.remove(item)
        return chosen

    def _may_displace(
        self, ask: Ask, held: Held, left: Sequence[Held], entitled: bool
    ) -> str | None:
        if not held.ask.preemptible:
            return None
        if held.ask.team == ask.team:
            if held.ask.priority < ask.priority:
                return f"makes room for {ask.id}, which is of a higher class"
            return None
        if not entitled:
            return None
        for resource in ask.need:
            usage = self._usage(resource, left)
            if held.ask.total.get(resource, 0.0) <= 0:
                continue
            if self._shares.borrowed(held.ask.team, resource, usage) > EPSILON:
                return (
                    f"gives borrowed {resource} back to team '{ask.team}', whose guarantee "
                    f"{ask.id} needs"
                )
        return None

    def _over_quota(self, ask: Ask, held: Sequence[Held]) -> str | None:
        """Why the team may not take that much now; None when it may."""
        for resource, amount in ask.total.items():
            if not self._shares.bounded(ask.team, resource):
                continue
            usage = self._usage(resource, held)
            nominal = self._shares.nominal(ask.team, resource)
            left = self._shares.available(ask.team, resource, usage)
            if not ask.preemptible:
                left = min(left, nominal - usage.get(ask.team, 0.0))
            if amount > left + EPSILON:
                return (
                    f"team '{ask.team}' holds {_show({resource: usage.get(ask.team, 0.0)})} of its "
                    f"{_show({resource: nominal})} and may take {_show({resource: left})} more, "
                    f"not {_show({resource: amount})}"
                )
        return None

    def _borrows(self, ask: Ask, held: Sequence[Held]) -> bool:
        """Whether starting it exceeds what its team is guaranteed."""
        return any(
            self._usage(resource, held).get(ask.team, 0.0) + amount
            > self._shares.nominal(ask.team, resource) + EPSILON
            for resource, amount in ask.total.items()
            if amount > 0
        )

    def _room(self, ask: Ask, pool: str, held: Iterable[Held]) -> bool:
        capacity = self._pools.get(pool)
        if capacity is None:
            return False
        nodes = [dict(node) for node in capacity.nodes]
        _spread(nodes, capacity.others)
        for each in sorted(
            (item for item in held if item.pool == pool), key=lambda item: _size(item.ask)
        ):
            for _ in range(each.ask.workers):
                _place(nodes, each.ask.need)
        return _fits(ask, nodes)

    def _take(self, ask: Ask, pool: str) -> None:
        self._taken.add(ask.id)
        self._held.append(Held(ask=ask, pool=pool, since=float("inf")))

    def _why_started(self, ask: Ask, pool: str, borrowing: bool) -> str:
        bounded = [each for each in ask.need if self._shares.bounded(ask.team, each)]
        if not bounded:
            whose = "team without a quota"
        else:
            whose = "with borrowed quota" if borrowing else "within its guarantee"
        return f"{ask.workers} x {_show(ask.need)} fits pool {pool}, {whose}"

    @staticmethod
    def _usage(resource: Resource, held: Iterable[Held]) -> dict[str, float]:
        usage: Counter[str] = Counter()
        for each in held:
            usage[each.ask.team] += each.ask.total.get(resource, 0.0)  # type: ignore[assignment]
        return dict(usage)


def _size(ask: Ask) -> tuple[float, float]:
    """Largest parts first."""
    return (-ask.need.get("gpus", 0.0), -ask.need.get("cpus", 0.0))


def _fits(ask: Ask, nodes: Sequence[Amounts]) -> bool:
    """Whether all workers find a node."""
    return sum(_copies(node, ask.need, ask.workers) for node in nodes) >= ask.workers


def _copies(node: Amounts, need: Amounts, most: int) -> int:
    parts = [
        floor((node.get(resource, 0.0) + EPSILON) / amount)
        for resource, amount in need.items()
        if amount > 0
    ]
    return max(0, min(parts, default=most))


def _place(nodes: list[dict[Resource, float]], need: Amounts) -> None:
    """Take one worker's part from the first node it fits, else from the emptiest one."""
    for node in nodes:
        if _copies(node, need, 1) >= 1:
            break
    else:
        if not nodes:
            return
        node = max(nodes, key=lambda each: each.get("cpus", 0.0))
    for resource, amount in need.items():
        node[resource] = node.get(resource, 0.0) - amount


def _spread(nodes: list[dict[Resource, float]], amounts: Amounts) -> None:
    """Take what other work holds from the first nodes on."""
    for resource, amount in amounts.items():
        for node in nodes:
            part = min(amount, max(0.0, node.get(resource, 0.0)))
            node[resource] = node.get(resource, 0.0) - part
            amount -= part


def _show(amounts: Mapping[Resource, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"

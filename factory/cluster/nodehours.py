"""Node-hours: from what Ray's node table says now and then to hours that are counted once.

    clock, spans = count(nodes, clock, wall=datetime.now(UTC), steady=monotonic(), pools=pools)

A `Clock` goes on by the steady clock, so that a wall clock that jumps, forward or back, neither
adds nor repeats an hour. What is counted is kept by machine, not by Ray's node id: a node that was
declared dead and comes back, under its old id or a new one, goes on where its machine was counted
last. Each hour's cost falls to workloads and overhead by the resources they hold; what nobody holds
is idle, so that workload + idle + overhead = total, to the nano-dollar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from factory.config import MARKET_LABEL, POOL_LABEL, ZONE_LABEL, OwnPool, Pool
from factory.ledger.nodes import Hold, NodeSpan

GPU_WEIGHT = 0.8
"""Part of a GPU node's price that follows its GPUs; the rest follows its CPUs."""
LONGEST_GAP = timedelta(days=1)
"""A longer time without a meter is not believed to have been spent; only this much is counted."""
_TAKEN = ("Unexpected termination", "Terminated due to preemption")
"""How Ray's `state_message` of a dead node begins when its cloud took it."""
_MACHINE_LABEL = "factory/machine"
"""The provider's id of the machine, which outlives Ray's node id."""


@dataclass(frozen=True)
class Use:
    """What one workload, or the platform itself, holds of a node."""

    kind: str
    """`model`, `job`, `work` or `overhead`."""
    name: str
    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it."""

    node_id: str
    machine: str
    pool: str
    zone: str | None = None
    alive: bool = True
    started: datetime | None = None
    ended: datetime | None = None
    taken: bool = False
    """It is gone, and nobody here let it go."""
    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0
    uses: tuple[Use, ...] = ()

    def share(self, use: Use) -> float:
        """The part of the node's price that `use` answers for, before all are cut to 1."""
        cpus = use.cpus / self.cpus if self.cpus else 0.0
        if not self.gpus:
            return cpus
        return GPU_WEIGHT * use.gpus / self.gpus + (1 - GPU_WEIGHT) * cpus

    @property
    def held_share(self) -> float:
        """The part of it that is held."""
        return min(1.0, sum(self.share(use) for use in self.uses))


@dataclass(frozen=True)
class Clock:
    """The ledger's time, and until when each machine is counted."""

    counted: Mapping[str, datetime] = field(default_factory=dict)
    time: datetime | None = None
    steady: float | None = None
    """Reading of the steady clock at `time`; None when another process made it."""

    def forward(self, wall: datetime, steady: float) -> datetime:
        """The ledger's time now; it never goes back."""
        if self.time is not None and self.steady is not None:
            return self.time + timedelta(seconds=max(0.0, steady - self.steady))
        return max([wall, *self.counted.values()])


def count(
    nodes: Iterable[Node],
    clock: Clock,
    *,
    wall: datetime,
    steady: float,
    pools: Mapping[str, Pool],
    prices: Mapping[str, int] | None = None,
) -> tuple[Clock, list[NodeSpan]]:
    """Spans since each machine was counted last, and the clock for the next time.

    `prices`: current nano-dollars an hour by pool, else those configured. A node of a pool that the
    configuration no longer names is priced like the dearest one, never at 0.
    """
    now = clock.forward(wall, steady)
    counted = dict(clock.counted)
    spans = []
    for node in sorted(nodes, key=lambda each: (each.started or now, each.node_id)):
        until = now if node.alive else min(node.ended or counted.get(node.machine, now), now)
        since = counted.get(node.machine)
        began = node.started or now
        if since is None:
            # First seen: it has run since Ray says so, unless that cannot be.
            since = began if now - LONGEST_GAP <= began <= now else now
        elif began > since:
            since = min(began, now)
        if clock.steady is None:
            since = max(since, now - LONGEST_GAP)
        if until <= since:
            if node.alive:
                counted.setdefault(node.machine, since)
            continue
        price = (prices or {}).get(node.pool) or _price(node.pool, pools)
        spans.append(_span(node, since, until, price))
        counted[node.machine] = until
    return Clock(counted, now, steady), spans


def resumed(counted: Mapping[str, datetime]) -> Clock:
    """The clock of a new process, from what the ledger has counted."""
    return Clock(dict(counted))


def pool_of(labels: Mapping[str, str], pools: Mapping[str, Pool]) -> str:
    """The pool of a node: by our label, by Ray's market type, else the first pool of one's own."""
    if labels.get(POOL_LABEL):
        return labels[POOL_LABEL]
    market = labels.get(MARKET_LABEL, "").replace("-", "")
    for name, pool in pools.items():
        if pool.market == market:
            return name
    own = [name for name, pool in pools.items() if isinstance(pool, OwnPool)]
    return own[0] if own else next(iter(pools))


def node_of(raw: Mapping[str, object], uses: Iterable[Use], pools: Mapping[str, Pool]) -> Node:
    """A row of Ray's node table, with what is held there."""
    labels = raw.get("labels")
    labels = {str(k): str(v) for k, v in labels.items()} if isinstance(labels, Mapping) else {}
    total = raw.get("resources_total")
    total = total if isinstance(total, Mapping) else {}
    node_id = str(raw.get("node_id"))
    return Node(
        node_id=node_id,
        machine=labels.get(_MACHINE_LABEL) or node_id,
        pool=pool_of(labels, pools),
        zone=labels.get(ZONE_LABEL),
        alive=raw.get("state") == "ALIVE",
        started=_moment(raw.get("start_time_ms")),
        ended=_moment(raw.get("end_time_ms")),
        taken=raw.get("state") == "DEAD" and str(raw.get("state_message") or "").startswith(_TAKEN),
        cpus=float(total.get("CPU", 0)),
        gpus=float(total.get("GPU", 0)),
        memory_gib=float(total.get("memory", 0)) / 2**30,
        uses=tuple(uses),
    )


def _moment(milliseconds: object) -> datetime | None:
    if not isinstance(milliseconds, int | float) or milliseconds <= 0:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _price(pool: str, pools: Mapping[str, Pool]) -> int:
    if pool in pools:
        return pools[pool].nusd_per_hour
    return max(each.nusd_per_hour for each in pools.values())


def _span(node: Node, since: datetime, until: datetime, price: int) -> NodeSpan:
    micros = (until - since) // timedelta(microseconds=1)
    cost = (micros * price + 1_800_000_000) // 3_600_000_000
    shares = [max(0.0, node.share(use)) for use in node.uses]
    scale = max(1.0, sum(shares))
    holds: dict[tuple[str, str], int] = {}
    left = cost
    for use, share in zip(node.uses, shares, strict=True):
        part = min(left, int(cost * (share / scale)))
        left -= part
        key = (use.kind, use.name)
        holds[key] = holds.get(key, 0) + part
    return NodeSpan(
        machine=node.machine,
        node_id=node.node_id,
        pool=node.pool,
        zone=node.zone,
        starts_at=since,
        ends_at=until,
        nusd_per_hour=price,
        cost_nusd=cost,
        holds=tuple(Hold(kind, name, part) for (kind, name), part in holds.items()),
    )

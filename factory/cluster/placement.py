"""Where a piece of work runs, why, and what that costs: one pure function.

    decided = place(work, settings.pools, free={"onprem": 2}, now=datetime.now(UTC))
    decided.pool, decided.reasons, [option.pool for option in decided.options]

`factory place` prints it, the job queue calls it. An option counts its `cost` (what the hours of
its nodes cost, everything counted) and its `extra`: the money that is spent only because of this
choice. Own nodes are paid for whether they work or not, so what they add is energy; rented nodes
add their rent and the transfer of the data. The cheapest extra that fits wins: steady load stays at
home, what does not fit there bursts to the cloud.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Literal

from pydantic import AwareDatetime, Field, model_validator

from factory.cluster.errors import ClusterError
from factory.config import NANO, OwnPool, Pool, RentedPool, Residency, WorkClass
from factory.config.section import Section

Predictability = Literal["steady", "daily", "bursty"]
BUSY: dict[Predictability, float] = {"steady": 1.0, "daily": 0.4, "bursty": 0.1}
"""Share of the time that load of this kind needs its nodes."""

HORIZON_H = 730.0
"""Hours that are compared for work without an end: a month."""


class PlacementError(ClusterError):
    """Work that cannot be placed as it is described."""


class Data(Section):
    """What the work reads and writes."""

    at: str = ""
    """Where the data is: a pool's name or a region; empty means beside the work."""
    read_gb: float = Field(default=0, ge=0)
    """Gigabytes that are read once."""
    written_gb: float = Field(default=0, ge=0)
    """Gigabytes that go back to where the data is."""


class Work(Section):
    """A piece of work: a job with `hours`, or a service without."""

    name: str = "work"
    """For the table."""
    class_: WorkClass = Field(default="batch", alias="class")
    """Workload class."""
    sensitivity: Residency = "internal"
    """Sensitivity of its data; only pools of that residency may have it."""
    predictability: Predictability = "steady"
    """How even the load of a service is: `steady`, `daily` or `bursty`."""
    latency_ms: float | None = Field(default=None, gt=0)
    """What somebody waits for; then nodes are held, and cannot be spot."""
    nodes: int = Field(default=1, ge=1)
    """Nodes at the same time."""
    cpus: float = Field(default=1, ge=0)
    """CPUs on each node."""
    gpus: float = Field(default=0, ge=0)
    """GPUs on each node."""
    memory_gib: float = Field(default=0, ge=0)
    """Memory on each node."""
    hours: float | None = Field(default=None, gt=0)
    """Running time without starts; null is a service."""
    deadline: AwareDatetime | None = None
    """When it must be finished."""
    interruptible: bool = True
    """Whether it goes on from a checkpoint when its node is taken."""
    restart_minutes: float = Field(default=12, ge=0)
    """What each start costs beside the node's own: set-up, loading the checkpoint."""
    data: Data = Data()
    """Data location and transfer."""

    @model_validator(mode="after")
    def _ends(self) -> Work:
        if self.deadline is not None and self.hours is None:
            raise ValueError("work with a deadline needs hours")
        return self


@dataclass(frozen=True)
class SpotEstimate:
    """What the spot policy expects of this job on a pool; see `spot.Planned.expected_cost`."""

    relative_cost: float
    """Expected cost over that of on-demand alone."""


@dataclass(frozen=True)
class Option:
    """A pool as a place for the work."""

    pool: str
    market: str
    fits: bool
    hours: float
    """Node-hours that are paid for."""
    cost_nusd: int
    """Everything counted, for `hours`."""
    extra_nusd: int
    """What is spent only because of this choice."""
    transfer_nusd: int
    """The part of both that is transfer of data."""
    why: str
    """Why it was chosen, or lost."""


@dataclass(frozen=True)
class Placement:
    """The decision."""

    work: str
    pool: str | None
    reasons: tuple[str, ...]
    options: tuple[Option, ...]
    """Chosen first, then by extra cost, then what does not fit."""
    saved_nusd: int | None
    """Extra cost of the next best option less that of the chosen one; None without another."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def place(
    work: Work,
    pools: Mapping[str, Pool],
    *,
    now: datetime,
    free: Mapping[str, int] | None = None,
    machine: Mapping[str, tuple[float, float, float]] | None = None,
    prices: Mapping[str, int] | None = None,
    spot: Mapping[str, SpotEstimate] | None = None,
) -> Placement:
    """The pool for `work`, with every option.

    `free`: nodes that can be had now by pool, else all. `machine`: CPUs, GPUs and GiB of a node by
    pool where the configuration leaves them to Ray. `prices`: current nano-dollars an hour by pool,
    else those configured. `spot`: expectations of the spot policy.

    Raises `PlacementError` for a deadline that is past, work larger than any pool's node, data at
    an unknown place.
    """
    if work.deadline is not None and work.deadline <= now:
        raise PlacementError(
            f"the deadline of '{work.name}', {work.deadline.isoformat()}, is already past; "
            "give a later one or none"
        )
    if not any(
        _short(work, pool, (machine or {}).get(name)) is None for name, pool in pools.items()
    ):
        sizes = "; ".join(
            f"{name}: {_short(work, pool, (machine or {}).get(name))}"
            for name, pool in pools.items()
        )
        raise PlacementError(f"'{work.name}' is larger than any pool: {sizes}")
    source = _source(work, pools)
    options = [
        _option(
            work,
            name,
            pool,
            now=now,
            free=None if free is None else free.get(name),
            size=(machine or {}).get(name),
            price=(prices or {}).get(name, pool.nusd_per_hour),
            estimate=(spot or {}).get(name),
            source=source,
            dearest=_dearest(pools),
        )
        for name, pool in pools.items()
    ]
    order = sorted(options, key=lambda option: (not option.fits, option.extra_nusd))
    fitting = [option for option in order if option.fits]
    if not fitting:
        against = tuple(f"{each.pool}: {each.why}" for each in order)
        return Placement(work.name, None, ("no pool fits now", *against), tuple(order), None)
    best, *others = fitting
    lost = [
        Option(**asdict(each) | {"why": _behind(each, best)}) if each.fits else each
        for each in order[1:]
    ]
    saved = others[0].extra_nusd - best.extra_nusd if others else None
    reasons = [f"{best.pool}: {best.why}"]
    if others:
        reasons.append(f"{_usd(saved or 0)} USD less than {others[0].pool}, the next best")
    return Placement(work.name, best.pool, tuple(reasons), (best, *lost), saved)


def _option(
    work: Work,
    name: str,
    pool: Pool,
    *,
    now: datetime,
    free: int | None,
    size: tuple[float, float, float] | None,
    price: int,
    estimate: SpotEstimate | None,
    source: RentedPool | OwnPool | None,
    dearest: int,
) -> Option:
    hours, why = _hours(work, pool, estimate, price, dearest)
    node_hours = hours * work.nodes
    cost = ceil(node_hours * price)
    moved = _transfer(work, name, pool, source)
    if isinstance(pool, OwnPool):
        extra = ceil(node_hours * pool.parts_nusd_per_hour["energy"])
    else:
        extra = cost
    against = _against(work, pool, now, free, size, hours)
    return Option(
        pool=name,
        market=pool.market,
        fits=against is None,
        hours=node_hours,
        cost_nusd=cost + moved,
        extra_nusd=extra + moved,
        transfer_nusd=moved,
        why=against or why,
    )


def _hours(
    work: Work, pool: Pool, estimate: SpotEstimate | None, price: int, dearest: int
) -> tuple[float, str]:
    """Hours that one node is paid for, and what speaks for the pool."""
    start = (pool.startup_s / 3600) + work.restart_minutes / 60
    if work.hours is None:
        if isinstance(pool, OwnPool):
            return HORIZON_H, "own nodes are there and paid for; only energy is added"
        if work.latency_ms is not None or work.predictability == "steady":
            return HORIZON_H, "held all month"
        busy = BUSY[work.predictability]
        return HORIZON_H * busy, f"rented for the {busy:.0%} of the time that it is needed"
    if pool.market == "spot" and estimate is not None:
        # The policy's expectation, on-demand hours included, as hours at this pool's price.
        alone = (work.hours + start) * dearest / price
        return estimate.relative_cost * alone, (
            f"expected {estimate.relative_cost:.0%} of on-demand alone, interruptions counted"
        )
    if pool.market == "spot":
        return work.hours + start, "cheap while it lasts; goes on from checkpoints"
    if isinstance(pool, OwnPool):
        return work.hours + start, "own nodes are there and paid for; only energy is added"
    return work.hours + start, "stays until the work is done"


def _against(
    work: Work,
    pool: Pool,
    now: datetime,
    free: int | None,
    size: tuple[float, float, float] | None,
    hours: float,
) -> str | None:
    """The first thing that rules a pool out, or None."""
    if work.sensitivity not in pool.residency:
        return f"{work.sensitivity} data may not be there (residency: {', '.join(pool.residency)})"
    if work.class_ not in pool.classes:
        return f"reserved for {', '.join(pool.classes)}"
    if short := _short(work, pool, size):
        return short
    if pool.market == "spot":
        if work.class_ == "production" or work.latency_ms is not None:
            return "spot nodes may be taken away while somebody waits"
        if not work.interruptible:
            return "it cannot go on from a checkpoint, and spot nodes may be taken away"
    if free is not None and free < work.nodes:
        return f"full: {free} of {work.nodes} nodes are free"
    if work.deadline is not None and work.hours is not None:
        needed = work.hours + pool.startup_s / 3600 + work.restart_minutes / 60
        late = now + timedelta(hours=needed) - work.deadline
        if late > timedelta(0):
            return f"would be {late.total_seconds() / 3600:.1f} h late"
    return None


def _short(work: Work, pool: Pool, size: tuple[float, float, float] | None) -> str | None:
    """What a pool has too little of, or None; sizes that nobody knows are taken to be enough."""
    known = size or (None, None, None)
    for what, wanted, has, detected in (
        ("CPUs", work.cpus, pool.cpus, known[0]),
        ("GPUs", work.gpus, pool.gpus, known[1]),
        ("GiB of memory", work.memory_gib, pool.memory_gib, known[2]),
    ):
        limit = detected if has is None else has
        if limit is None and what == "GPUs" and isinstance(pool, RentedPool):
            limit = 0.0  # a rented node has the GPUs that its pool names
        if limit is not None and wanted > limit:
            return f"a node has {limit:g} {what}, {wanted:g} are needed"
    if work.nodes > pool.max_nodes:
        return f"it has {pool.max_nodes} nodes, {work.nodes} are needed"
    return None


def _source(work: Work, pools: Mapping[str, Pool]) -> OwnPool | RentedPool | None:
    """A pool at the place of the data. Raises `PlacementError` when there is none."""
    at = work.data.at
    if not at:
        return None
    for name, pool in pools.items():
        if at in {name, pool.region}:
            return pool
    places = sorted({*pools, *(pool.region for pool in pools.values() if pool.region)})
    raise PlacementError(
        f"data.at: no pool is named '{at}' or in that region; known: {', '.join(places)}"
    )


def _transfer(work: Work, name: str, pool: Pool, source: OwnPool | RentedPool | None) -> int:
    """Nano-dollars for moving the data: out of its place, and the results back."""
    here = source is None or work.data.at in {name, pool.region} or source is pool
    if here or source is None:
        return 0
    read = source.egress_usd_per_gb * ceil(work.data.read_gb * 1000)
    written = pool.egress_usd_per_gb * ceil(work.data.written_gb * 1000)
    return ceil((read + written) * NANO / 1000)


def _dearest(pools: Mapping[str, Pool]) -> int:
    """The on-demand price that spot is compared with."""
    rented = [pool.nusd_per_hour for pool in pools.values() if pool.market == "ondemand"]
    return min(rented or [max(pool.nusd_per_hour for pool in pools.values())])


def _behind(option: Option, best: Option) -> str:
    more = _usd(option.extra_nusd - best.extra_nusd)
    return f"fits, but costs {more} USD more than {best.pool}"


def _usd(nusd: int) -> str:
    return f"{nusd / NANO:.2f}"

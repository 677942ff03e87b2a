"""Which pools may run a job, cheapest first, and what it costs there. Pure.

pools(settings, spec)                        # ("onprem", "spot", "ondemand")
nusd_per_hour(settings.pools["spot"], spec)  # its share of the nodes it is on
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING

from factory.cluster.placement import Placement, PlacementError, Work, place
from factory.cluster.queue.admission import Capacity
from factory.config import Pool, Resource, Settings

if TYPE_CHECKING:
    from factory.cluster.queue.spec import JobSpec


RESTART_S = 60.0
"""What a start costs beside the node's own."""


def pools(settings: Settings, spec: JobSpec, now: datetime) -> tuple[str, ...]:
    """The pools a job may run in, in the order of `placement.place`.

    A job whose deadline allows no interruption any more gets no spot nodes; one that fits no pool
    gets none at all. Where a record of the zones says more, `spot_jobs` decides instead.
    """
    fitting = fit(settings, spec, now)
    if not fitting and spec.deadline is not None:  # late is better than never
        return pools(settings, spec.model_copy(update={"deadline": None}), now)
    firm = [name for name in fitting if settings.pools[name].market != "spot"]
    if firm and must_stay(spec, now, max(settings.pools[name].startup_s for name in firm)):
        return tuple(firm)
    return fitting


def fit(settings: Settings, spec: JobSpec, now: datetime) -> tuple[str, ...]:
    """The pools that take the job, in the order of `placement.place`, whatever comes of spot."""
    try:
        decided = placed(settings, spec, now)
    except PlacementError:
        return ()
    return tuple(option.pool for option in decided.options if option.fits)


def placed(settings: Settings, spec: JobSpec, now: datetime) -> Placement:
    """The placement of the job, with every option. Raises `PlacementError`."""
    allowed = {
        name: pool for name, pool in settings.pools.items() if not spec.pools or name in spec.pools
    }
    hours = None if spec.duration_s is None else spec.duration_s / 3600
    work = Work.model_validate(
        {
            "name": spec.module,
            "class": spec.workload,
            "sensitivity": spec.sensitivity,
            "cpus": spec.cpus,
            "gpus": spec.gpus,
            "hours": hours or 1.0,
            "deadline": spec.deadline if hours is not None else None,
            "restart_minutes": 1,
        }
    )
    return place(work, allowed, now=now)


def must_stay(spec: JobSpec, now: datetime, startup_s: float, worked_s: float = 0.0) -> bool:
    """Whether one more interruption would cost the deadline: then spot is no place for it.

    What `worked_s` did counts as done. Two starts are reckoned with, each of a node that needs
    `startup_s`: the move to nodes that stay, and the one that a surprise before it costs.
    """
    if spec.deadline is None or spec.duration_s is None:
        return False
    needed = max(0.0, spec.duration_s - worked_s) + 2 * (RESTART_S + startup_s)
    return spec.deadline - now <= timedelta(seconds=needed)


def node(pool: Pool) -> dict[Resource, float] | None:
    """What a node of the pool has; None while the configuration leaves that to Ray."""
    if pool.cpus is None:
        return None
    return {"cpus": pool.cpus, "gpus": pool.gpus or 0.0}


def configured_capacity(settings: Settings) -> dict[str, Capacity]:
    """The pools whose size the configuration gives, empty and at their largest."""
    found = {}
    for name, pool in settings.pools.items():
        if (size := node(pool)) is not None:
            found[name] = Capacity(nodes=(size,) * pool.max_nodes)
    return found


def nusd_per_hour(pool: Pool, spec: JobSpec) -> int:
    """What the job costs an hour there: its dominant share of the nodes it is on, rounded up.

    Without known node sizes each worker counts as a node; a driver alone takes nothing.
    """
    size = node(pool)
    if not any(spec.need.values()):
        return 0
    share = 1.0
    if size is not None:
        parts = [amount / size[name] for name, amount in spec.need.items() if size.get(name)]
        share = min(1.0, max(parts, default=1.0))
    return ceil(spec.workers * share * pool.nusd_per_hour)


def estimate_nusd(
    settings: Settings, spec: JobSpec, seconds: float | None, now: datetime
) -> int | None:
    """What a job of that length costs in the pool it prefers; None when the length is unknown."""
    names = pools(settings, spec, now)
    if seconds is None or not names:
        return None
    return ceil(nusd_per_hour(settings.pools[names[0]], spec) * seconds / 3600)

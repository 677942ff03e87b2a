"""When a running job with a deadline goes on elsewhere: off spot, back to it, to another zone.

moving.why(settings, spot_jobs, job, seen, now)     # a sentence, or None while it stays
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from factory.cluster.queue import eligibility
from factory.cluster.queue.runner import Seen
from factory.cluster.queue.store import QueuedJob
from factory.cluster.spot.jobs import Held, SpotJobs
from factory.cluster.spot.policy import ONDEMAND
from factory.config import Settings


def may(settings: Settings, job: QueuedJob) -> bool:
    """Whether the question arises: it has a deadline and is on rented nodes."""
    pool = settings.pools.get(job.pool or "")
    if pool is None or pool.market == "onprem":
        return False
    return job.spec.deadline is not None and job.started_at is not None


def why(
    settings: Settings, spot: SpotJobs, job: QueuedJob, seen: Mapping[str, Seen], now: datetime
) -> str | None:
    """Why the job should be stopped, through its checkpoint, and go on elsewhere."""
    here = held(job, seen)
    advice = spot.advise(job, now, here)
    if advice is None:
        return _leaves_spot(settings, job, now)
    sides, hold = advice.sides, advice.choice.hold
    if job.pool == sides.spot:
        if hold == ONDEMAND:
            return f"moves from {job.pool} to {sides.firm}: {advice.reasons}"
        if here is None and None not in (hold, job.zone) and hold != job.zone:
            return f"asks for zone {hold} instead of {job.zone}: {advice.reasons}"
        return None
    back = hold not in (None, ONDEMAND) and advice.sure and job.pool == sides.firm
    if back and _may_return(settings, job, seen.get(sides.spot)):
        return f"moves from {job.pool} to {sides.spot}: {advice.reasons}"
    return None


def stranded(
    settings: Settings, job: QueuedJob, seen: Mapping[str, Seen], now: datetime
) -> str | None:
    """Why a job should not wait for nodes of its pool any longer: it has none, and none can be had.

    None while there is one, one may come, or no other pool may have the job.
    """
    here = seen.get(job.pool or "")
    if here is None or here.nodes or not here.capped:
        return None
    others = [name for name in eligibility.fit(settings, job.spec, now) if name != job.pool]
    open_ = [name for name in others if name not in seen or not seen[name].capped]
    if not open_:
        return None
    return f"pool {job.pool} has lost its last node and none can be had; goes on in {open_[0]}"


def held(job: QueuedJob, seen: Mapping[str, Seen]) -> Held | None:
    """The node that an attempt is on; None while its pool has none."""
    nodes = seen.get(job.pool or "")
    if nodes is None or not nodes.nodes or job.pool is None or job.started_at is None:
        return None
    return Held(job.pool, job.started_at, nodes.zones)


def _may_return(settings: Settings, job: QueuedJob, there: Seen | None) -> bool:
    """Whether leaving nodes that stay for spot is possible, and is not done for ever."""
    jobs, spec = settings.jobs, job.spec
    priority = jobs.classes.get(spec.priority)
    if priority is None or not priority.preemptible:
        return False
    if 2 * (job.interruptions + 1) > jobs.retries.max_interruptions:
        return False
    if jobs.autoscaler:
        return True
    return there is not None and all(
        sum(node.get(name, 0.0) for node in there.nodes) - there.used.get(name, 0.0)
        >= spec.workers * amount
        for name, amount in spec.need.items()
    )


def _leaves_spot(settings: Settings, job: QueuedJob, now: datetime) -> str | None:
    """Without a record of the zones: off spot once an interruption would cost the deadline."""
    pool = settings.pools[job.pool or ""]
    if pool.market != "spot" or job.started_at is None:
        return None
    done_s = max(0.0, (now - job.started_at).total_seconds())
    elsewhere = eligibility.fit(settings, job.spec.model_copy(update={"deadline": None}), now)
    firm = [name for name in elsewhere if settings.pools[name].market != "spot"]
    if not firm:
        return None
    startup = max(settings.pools[name].startup_s for name in firm)
    if not eligibility.must_stay(job.spec, now, startup, done_s):
        return None
    return f"moves from spot to {firm[0]}: another interruption would cost its deadline"

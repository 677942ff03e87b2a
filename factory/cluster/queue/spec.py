"""What a job asks for: checked when it is submitted, kept with it, the same on every platform.

    spec = JobSpec(module="pipelines.finetune", team="research", cpus=2, duration_s=3600)
    check(spec, settings, now)       # raises `JobError` with one sentence

`workers` equal parts of `cpus` and `gpus` are the gang that starts at once or not at all. The
driver beside them takes nothing.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, ValidationError, field_validator

from factory.cluster.errors import JobError
from factory.cluster.placement import PlacementError
from factory.cluster.queue import eligibility
from factory.cluster.queue.admission import Amounts, Ask, Capacity, too_large
from factory.cluster.queue.offpeak import opens_at
from factory.cluster.queue.quota import Shares
from factory.config import Settings, WorkClass
from factory.config.pools import Residency
from factory.config.section import Name, Section

_MODULE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


class JobSpec(Section):
    """A job to run, as its submitter wants it."""

    module: str
    """What `python -m` runs."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    team: Name
    """Who is charged."""
    priority: Name = "normal"
    """A priority class of `jobs.classes`."""
    workload: WorkClass = "batch"
    """Decides, with the sensitivity, which pools may run it."""
    sensitivity: Residency = "internal"
    """Of the data it reads."""
    workers: int = Field(default=1, ge=1, le=10_000)
    """Equal parts that start together."""
    cpus: Annotated[float, Field(ge=0, le=10_000)] = 1
    """CPUs of one worker."""
    gpus: Annotated[float, Field(ge=0, le=1_000)] = 0
    """GPUs of one worker."""
    duration_s: Annotated[float, Field(gt=0, le=365 * 86_400)] | None = None
    """How long it will take; null when nobody knows."""
    deadline: AwareDatetime | None = None
    """When it has to be done."""
    checkpoint_s: Annotated[float, Field(ge=0, le=86_400)] = 300
    """Work that an interruption without notice may cost: the time between two checkpoints."""
    window: Name | None = None
    """Off-peak window of `jobs.windows` in which it may start."""
    pools: tuple[Name, ...] = ()
    """Pools it may use; empty leaves that to placement."""
    max_usd: Annotated[Decimal, Field(gt=0)] | None = None
    """It is stopped before it costs more than this."""
    code: str = ""
    """Content hash of the working folder it runs in."""
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of its process."""

    @field_validator("module")
    @classmethod
    def _is_module(cls, value: str) -> str:
        if not _MODULE.match(value):
            raise ValueError(f"'{value}' is no name of a Python module")
        return value

    @property
    def need(self) -> Amounts:
        """What one worker takes."""
        return {"cpus": self.cpus, "gpus": self.gpus} if self.gpus else {"cpus": self.cpus}


def usual_cpus(module: str) -> float:
    """CPUs of a worker where nobody says: one for training, none for a driver that only asks."""
    return 1.0 if module.rsplit(".", 1)[-1] in ("finetune", "distill", "tune") else 0.0


def made(**values: Any) -> JobSpec:
    """A spec from outside input. Raises `JobError` with one sentence."""
    try:
        return JobSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise JobError(f"the job's {where}: {said}") from error


def new_id(module: str) -> str:
    """A short id that people can read: the module's last name and six random characters."""
    name = module.rsplit(".", 1)[-1].lower().replace("_", "-")[:40].strip("-")
    return f"{name}-{secrets.token_hex(3)}"


def ask(
    job_id: str,
    spec: JobSpec,
    order: int,
    settings: Settings,
    now: datetime,
    eligible_at: datetime | None = None,
    pools: tuple[str, ...] | None = None,
) -> Ask:
    """The job as admission sees it."""
    priority = settings.jobs.classes[spec.priority]
    return Ask(
        id=job_id,
        team=spec.team,
        order=order,
        priority=priority.value,
        preemptible=priority.preemptible,
        workers=spec.workers,
        need=spec.need,
        pools=eligibility.pools(settings, spec, now) if pools is None else pools,
        waited_s=0.0 if eligible_at is None else max(0.0, (now - eligible_at).total_seconds()),
        forced=forced(spec, now),
    )


def forced(spec: JobSpec, now: datetime, overhead_s: float = 60.0) -> bool:
    """Whether the deadline is missed unless it starts now (`overhead_s` for starting up)."""
    if spec.deadline is None:
        return False
    needed = timedelta(seconds=(spec.duration_s or 0.0) + overhead_s)
    return spec.deadline - now <= needed


def check(
    spec: JobSpec, settings: Settings, now: datetime, pools: Mapping[str, Capacity] | None = None
) -> None:
    """Refuse what could never run. Raises `JobError` with one sentence.

    `pools` is what there is; without it the sizes that the configuration gives are believed.
    """
    if settings.teams and spec.team not in settings.teams:
        raise JobError(
            f"team '{spec.team}' is not under teams ({', '.join(sorted(settings.teams)) or 'none'})"
        )
    if spec.priority not in settings.jobs.classes:
        raise JobError(
            f"priority class '{spec.priority}' is not under jobs.classes "
            f"({', '.join(settings.jobs.classes)})"
        )
    if spec.window is not None and spec.window not in settings.jobs.windows:
        raise JobError(
            f"window '{spec.window}' is not under jobs.windows "
            f"({', '.join(settings.jobs.windows) or 'none'})"
        )
    for name in spec.pools:
        if name not in settings.pools:
            raise JobError(f"pool '{name}' is not under pools ({', '.join(settings.pools)})")
    if spec.deadline is not None:
        _check_deadline(spec, settings, now)
    wanted = ask("it", spec, 0, settings, now)
    if not wanted.pools:
        try:
            against = eligibility.placed(settings, spec, now).reasons
        except PlacementError as error:
            raise JobError(f"the job could never start: {error}") from error
        raise JobError(f"the job could never start: {'; '.join(against)}")
    known = pools if pools is not None else eligibility.configured_capacity(settings)
    if not set(wanted.pools) <= set(known):
        return  # a size is not known before a node is there
    reason = too_large(wanted, known, Shares.of(settings))
    if reason is not None:
        raise JobError(f"the job could never start: {reason}")


def _check_deadline(spec: JobSpec, settings: Settings, now: datetime) -> None:
    assert spec.deadline is not None
    if spec.deadline <= now:
        raise JobError(
            f"the deadline {spec.deadline.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} is past "
            f"(it is {now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ})"
        )
    first = now if spec.window is None else opens_at(settings.jobs.windows[spec.window], now)
    if first + timedelta(seconds=spec.duration_s or 0.0) > spec.deadline:
        when = "" if first == now else f" once window '{spec.window}' opens at {first:%H:%M} UTC"
        raise JobError(
            f"the deadline {spec.deadline.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} cannot be kept: "
            f"it takes {spec.duration_s or 0:.0f} s{when}"
        )

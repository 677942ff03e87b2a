"""`jobs`: priority classes, off-peak windows, cohorts and retries of the job queue.

    settings.jobs.classes["low"].value            # 10
    settings.teams["research"].quota.of("cpus")   # nominalQuota, borrowingLimit, lendingLimit

Quota speaks Kueue's words: a team owns `nominalQuota`, may take `borrowingLimit` more of what its
cohort does not use, and keeps all but `lendingLimit` of its own for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from factory.config.section import Name, Section

Resource = Literal["cpus", "gpus"]
RESOURCES: tuple[Resource, ...] = ("cpus", "gpus")
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ResourceQuota(Section):
    """How much of one resource a team or cohort owns, borrows and lends."""

    nominalQuota: _Amount = 0
    """What is guaranteed; lent to others while unused, and taken back when needed."""
    borrowingLimit: _Amount | None = None
    """Most that may be borrowed from the cohort; null sets no bound."""
    lendingLimit: _Amount | None = None
    """Most that others may borrow; null lends all that is unused."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"nominalQuota": value} if isinstance(value, int | float) else value


class Quota(Section):
    """What a team or a cohort may hold at once. A number is short for its `nominalQuota`."""

    cohort: Name | None = None
    """Whom to borrow from and lend to: teams and cohorts of the same cohort."""
    cpus: ResourceQuota | None = None
    """CPUs; null sets no bound and guarantees nothing."""
    gpus: ResourceQuota | None = None
    """GPUs; null sets no bound and guarantees nothing."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    """Share of what is free to all, beside teams of the same cohort."""

    def of(self, resource: Resource) -> ResourceQuota | None:
        """The quota of one resource."""
        found: ResourceQuota | None = getattr(self, resource)
        return found


class PriorityClass(Section):
    """How important a job is."""

    value: int = Field(ge=0, le=1000)
    """Jobs of a higher value go first."""
    preemptible: bool = True
    """Whether a job may be stopped for another. One that may not never borrows."""


class OffPeak(Section):
    """Hours in which work that can wait may start, in a named time zone."""

    time_zone: str = "UTC"
    """IANA name, for example `Europe/Berlin`."""
    days: tuple[Weekday, ...] = Field(default=WEEKDAYS, min_length=1)
    """Days on which the window opens."""
    start: time
    """Local time at which it opens."""
    end: time
    """Local time at which it closes; before `start` it is that of the next day."""

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"'{value}' is no IANA time zone; write for example Europe/Berlin"
            ) from error
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> OffPeak:
        if self.start == self.end:
            raise ValueError("start and end are the same; leave the window out to allow all day")
        return self


class Retries(Section):
    """What happens to a job that fails."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts that may fail before the job is dead; interruptions do not count."""
    max_interruptions: int = Field(default=20, ge=0)
    """Preemptions and lost nodes after which the job is dead."""
    backoff_s: float = Field(default=10, ge=0)
    """Wait after the first failure; it doubles with each further one."""
    max_backoff_s: float = Field(default=1800, ge=0)
    """Longest wait."""


class Jobs(Section):
    """The job queue."""

    classes: dict[Name, PriorityClass] = Field(
        default_factory=lambda: {
            "high": PriorityClass(value=100, preemptible=False),
            "normal": PriorityClass(value=50),
            "low": PriorityClass(value=10),
        },
        min_length=1,
    )
    """Priority classes by name."""
    windows: dict[Name, OffPeak] = Field(
        default_factory=lambda: {"off-peak": OffPeak(start=time(20), end=time(6))}
    )
    """Off-peak windows by name."""
    cohorts: dict[Name, Quota] = Field(default_factory=dict)
    """Cohorts with quota of their own, or with a cohort above them; others need no entry."""
    retries: Retries = Retries()
    """What happens to a job that fails."""
    patience_s: float = Field(default=600, ge=0)
    """A job that has waited this long is not overtaken in its class any more."""
    stop_grace_s: int = Field(default=30, ge=0, le=3600)
    """Seconds a preempted or cancelled job has to save its work."""
    autoscaler: bool = False
    """Whether nodes come when they are needed, up to `pools.NAME.max_nodes`; else only those that
    are there count."""
    keep_attempts_apart_s: float = Field(default=5, ge=0)
    """Seconds between an interruption and the next attempt."""

    @model_validator(mode="after")
    def _no_cycle(self) -> Jobs:
        for name in self.cohorts:
            cycle(self.cohorts, name)
        return self


def cycle(cohorts: Mapping[str, Quota], start: str) -> list[str]:
    """The cohorts from `start` up to the top. Raises `ValueError` when they form a circle."""
    path: list[str] = []
    name: str | None = start
    while name is not None:
        path.append(name)
        if name in path[:-1]:
            raise ValueError(
                f"jobs.cohorts: {' → '.join(path)} is a circle; a cohort cannot stand below itself"
            )
        above = cohorts.get(name)
        name = above.cohort if above is not None else None
    return path

"""`scaling` of an endpoint and of a model: the floor, the ceiling, and when to fall asleep."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from factory.config.section import Section

EndpointClass = Literal["production", "internal", "batch"]

FLOOR: dict[EndpointClass, int] = {"production": 1, "internal": 0, "batch": 0}
"""Replicas that stay while nobody asks, by endpoint class."""

IDLE_AFTER_S: dict[EndpointClass, float] = {"production": 900.0, "internal": 600.0, "batch": 60.0}
"""Seconds without a request after which replicas above the floor are put to sleep."""


class Scaling(Section):
    """What an endpoint asks of the engines that answer it."""

    min_replicas: int | None = Field(default=None, ge=0, le=10_000)
    """Replicas that stay while nobody asks; null takes 1 for `production`, 0 for the others."""
    idle_after_s: float | None = Field(default=None, gt=0)
    """Seconds without a request after which engines fall back to `min_replicas`; null takes 600
    for `internal`, 60 for `batch`, 900 for `production`."""
    attainment: float = Field(default=0.99, ge=0.5, lt=1)
    """Wanted share of requests within the endpoint's latency target."""


class ModelScaling(Section):
    """How far the replicas of a model may grow."""

    max_replicas: int = Field(default=1, ge=1, le=10_000)
    """Most replicas of one engine of this model."""
    standby: bool = False
    """Asleep, its engine keeps a process with vLLM imported, 0.8 GB, and wakes in a third of the
    time."""
    startup_s: float = Field(default=60.0, gt=0)
    """Seconds a new replica needs until it answers, until real starts were seen."""

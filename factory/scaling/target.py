"""What a deployment must hold: its bounds, its latency target, and when it may sleep.

target = of_model(settings, "smollm2-135m")     # the strictest of the endpoints it answers
"""

from __future__ import annotations

from dataclasses import dataclass

from factory.config import Endpoint, EndpointClass, Settings

CLASSES: tuple[EndpointClass, ...] = ("production", "internal", "batch")
"""Endpoint classes, the one that is served first in front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Bounds and aims of one deployment."""

    min_replicas: int = 0
    """Replicas that stay while nobody asks."""
    max_replicas: int = 1
    """Most replicas."""
    idle_after_s: float = 600.0
    """Seconds without a request after which the replicas fall back to the floor."""
    ttft_s: float | None = None
    """Time to first token that requests must meet; None sets no target."""
    inter_token_s: float | None = None
    """Time between tokens that answers must meet; None sets no target."""
    search_s: float | None = None
    """95th percentile of a vector search that must be met; None sets no target."""
    attainment: float = 0.99
    """Wanted share of requests within the target."""
    startup_s: float = 60.0
    """Seconds until a new replica answers, until real starts have been seen."""

    def __post_init__(self) -> None:
        """Raises `ValueError` for bounds that contradict each other."""
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) must lie between 0 and max_replicas "
                f"({self.max_replicas})"
            )


def of_endpoints(
    endpoints: list[Endpoint], *, max_replicas: int = 1, startup_s: float = 60.0
) -> Target:
    """The target of a deployment that answers all of `endpoints`: the strictest of each."""
    ttfts = [one.target.ttft_ms for one in endpoints if one.target.ttft_ms]
    gaps = [one.target.inter_token_ms for one in endpoints if one.target.inter_token_ms]
    floor = max((one.floor for one in endpoints), default=0)
    return Target(
        min_replicas=min(floor, max_replicas),
        max_replicas=max_replicas,
        idle_after_s=max((one.idle_after_s for one in endpoints), default=60.0),
        ttft_s=min(ttfts) / 1000 if ttfts else None,
        inter_token_s=min(gaps) / 1000 if gaps else None,
        attainment=max((one.scaling.attainment for one in endpoints), default=0.99),
        startup_s=startup_s,
    )


def of_model(settings: Settings, model: str) -> Target:
    """The target of an engine of `model` that answers every endpoint which may use it."""
    asked = [
        endpoint
        for endpoint in settings.endpoints.values()
        if any(name == model for name, _ in settings.ladder(endpoint))
    ]
    scaling = settings.models[model].scaling
    return of_endpoints(asked, max_replicas=scaling.max_replicas, startup_s=scaling.startup_s)


def class_of(endpoints: list[Endpoint]) -> EndpointClass:
    """The foremost class among `endpoints`; `batch` when there is none."""
    ranks = [CLASSES.index(one.class_) for one in endpoints]
    return CLASSES[min(ranks, default=len(CLASSES) - 1)]

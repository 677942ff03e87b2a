"""`endpoints`: the named routes that teams own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from factory.config.guard import Guard, linear
from factory.config.scaling import FLOOR, IDLE_AFTER_S, EndpointClass, Scaling
from factory.config.section import Name, Section, Tier
from factory.config.teams import Budget, Limits


class Target(Section):
    """What an endpoint promises its callers."""

    ttft_ms: int | None = Field(default=None, gt=0)
    """Time to first token, in milliseconds."""
    inter_token_ms: int | None = Field(default=None, gt=0)
    """Mean time between the tokens of an answer, in milliseconds."""
    quality: float | None = Field(default=None, ge=0, le=1)
    """Wanted share of good answers."""


class Rule(Section):
    """A question that needs no model."""

    pattern: str
    """Regular expression (RE2) that the whole last question must match."""
    answer: str = Field(min_length=1)
    """What is answered, at no cost."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return linear((value,))[0]


class Endpoint(Section):
    """A named route a team owns."""

    team: Name
    """The owning team; it must stand under `teams`."""
    class_: EndpointClass = Field(default="internal", alias="class")
    """`production` keeps a floor of replicas; `internal` and `batch` may sleep."""
    tiers: tuple[Tier, ...] = (0, 1)
    """The tiers this endpoint may use, cheapest first."""
    adapter: Name | None = None
    """The adapter its open models wear once one is promoted; none means the base."""
    rules: tuple[Rule, ...] = ()
    """Answers of tier 0 by rule; the first that matches answers."""
    task: Literal["generate", "embed"] = "generate"
    """`generate` answers chat and completions, `embed` answers embeddings."""
    target: Target = Target()
    """Latency and quality target."""
    scaling: Scaling = Scaling()
    """How many replicas stay for this endpoint, and when they sleep."""
    budget: Budget = Budget()
    """Money that may be spent on this endpoint by everybody together."""
    limits: Limits = Limits()
    """Bounds on this endpoint's requests."""
    guard: Guard | None = None
    """Filters of this endpoint; null takes those of the section `guard`."""
    semantic_cache: bool = False
    """Look for questions that mean the same in other words, once the team is calibrated."""
    self_consistency: int = Field(default=1, ge=1, le=8)
    """Answers sampled from a tier; when they disagree the request climbs. 1 asks once."""
    sensitivity: Literal["restricted", "internal", "public"] = "internal"
    """`restricted` never leaves the cluster, whatever the router prefers."""

    @field_validator("tiers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)):
            raise ValueError("tiers must be ascending and without repeats, for example [0, 1, 3]")
        return value

    @property
    def floor(self) -> int:
        """Replicas that stay while nobody asks."""
        chosen = self.scaling.min_replicas
        return FLOOR[self.class_] if chosen is None else chosen

    @property
    def idle_after_s(self) -> float:
        """Seconds without a request after which engines fall back to the floor."""
        return self.scaling.idle_after_s or IDLE_AFTER_S[self.class_]

"""`routing`: where a request starts, when it climbs, and how failures are borne."""

from __future__ import annotations

from pydantic import Field, field_validator

from factory.config.guard import compiling
from factory.config.section import Name, Section


class Breaker(Section):
    """When a failing model is left alone, and for how long."""

    failures: int = Field(default=5, ge=1)
    """Failures in a row after which the model is not asked any more."""
    cooldown_s: float = Field(default=10.0, gt=0)
    """Seconds until a single request may try it again; doubled with each failed trial."""
    max_cooldown_s: float = Field(default=120.0, gt=0)
    """Longest such wait."""


class Routing(Section):
    """When a request climbs."""

    confidence_threshold: float = Field(default=0.5, ge=0, le=1)
    """An open model's answer whose confidence is lower asks for the next tier."""
    hard_prompt_tokens: int = Field(default=1024, ge=1)
    """A prompt longer than this starts above tier 1 where the endpoint allows."""
    hard_patterns: tuple[str, ...] = ()
    """Regular expressions; a prompt that matches one starts above tier 1 where allowed."""

    learned: bool = True
    """Use an endpoint's fitted and calibrated router where there is one."""
    collect: bool = True
    """Keep the embedding of each prompt beside its outcome, for `factory routing fit`."""
    encoder: Name | None = None
    """The catalog's encoder that a second router reads with; the default is its first one."""
    breaker: Breaker = Breaker()
    """When a failing model is left alone."""

    @field_validator("hard_patterns")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return compiling(value)

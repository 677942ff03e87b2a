"""`gates`: what a candidate must show before it may become champion."""

from __future__ import annotations

from pydantic import Field

from factory.config.section import Section


class Accuracy(Section):
    """Quality side of a gate."""

    min: float = Field(default=0.0, ge=0, le=1)
    """Lowest accuracy that may be promoted."""
    no_worse_than_champion: float | None = Field(default=0.0, ge=0, le=1)
    """How much accuracy below the champion is tolerated; null skips the comparison."""
    better_than_base: bool = True
    """The 95 % interval of candidate minus base must lie above zero."""


class Ceiling(Section):
    """An upper bound."""

    max: float = Field(gt=0)
    """The largest value that passes."""


class Gate(Section):
    """Thresholds a candidate must pass before it may become champion."""

    accuracy: Accuracy = Accuracy()
    """Bounds on accuracy over the suite."""
    p95_ms: Ceiling | None = None
    """Bound on the 95th percentile of latency in the evaluation, in milliseconds."""
    cost_per_1k_usd: Ceiling | None = None
    """Bound on the list price of 1,000 cases, in US dollars."""
    min_cases: int = Field(default=30, ge=1)
    """A suite smaller than this cannot promote anything."""

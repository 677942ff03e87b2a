"""When training ends and how fast it learns until then: pure functions of step and elapsed time.

schedule = Schedule.plan(config, examples=1200)
schedule.factor(step=30, elapsed=12.5)     # share of the peak learning rate
schedule.done(step=30, elapsed=12.5)       # a reason, or None to go on
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from factory.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """End of a run in optimizer steps or in seconds, whichever comes first."""

    kind: Literal["linear", "cosine", "constant"]
    warmup_steps: int
    max_steps: int | None
    max_seconds: float | None

    @classmethod
    def plan(cls, config: TrainConfig, examples: int) -> Schedule:
        """The schedule of a run; epochs count only where neither steps nor seconds are given."""
        steps = config.max_steps
        if steps is None and config.max_train_seconds is None:
            steps = max(1, math.ceil(config.num_train_epochs * examples / config.global_batch))
        return cls(
            kind=config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            max_steps=steps,
            max_seconds=config.max_train_seconds,
        )

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is over, 0 to 1, after `step` steps and `elapsed` seconds."""
        shares = [0.0]
        if self.max_steps is not None:
            shares.append(step / self.max_steps)
        if self.max_seconds is not None:
            shares.append(elapsed / self.max_seconds)
        return min(1.0, max(shares))

    def factor(self, step: int, elapsed: float) -> float:
        """Share of the peak learning rate for the step that comes next, above 0, at most 1."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = max(0.0, 1.0 - self.progress(step, elapsed))
        match self.kind:
            case "constant":
                fall = 1.0
            case "linear":
                fall = left
            case "cosine":
                fall = 0.5 * (1.0 - math.cos(math.pi * left))
        return warm * max(fall, 1e-3)

    def done(self, step: int, elapsed: float) -> str | None:
        """Why the run is over, or None."""
        if self.max_steps is not None and step >= self.max_steps:
            return f"{step} of {self.max_steps} steps done"
        if self.max_seconds is not None and elapsed >= self.max_seconds:
            return f"the budget of {self.max_seconds:g} seconds is spent after {step} steps"
        return None

    def remaining_seconds(self, step: int, elapsed: float) -> float | None:
        """Expected seconds to the end at the pace so far; None before there is a pace."""
        share = self.progress(step, elapsed)
        return elapsed * (1.0 - share) / share if share > 0 and elapsed > 0 else None

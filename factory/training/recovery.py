"""Whether an interrupted run starts again: a pure function of how its starts have ended.

    decide([Ended("lost", 40, "node 3f… died")], max_failures=2, max_preemptions=-1)
    # Decision(go_on=True, reason="a node was lost after step 40; starting again (1 so far)")

Nodes that are taken away have a budget of their own. Failures count only in a row: a start that
got to a new checkpoint clears what came before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_IDLE_LOSSES = 5
"""Nodes lost in a row without a new checkpoint, after which the run's interval is too long."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one start of a run ended."""

    kind: Literal["left", "lost", "failed"]
    """It left on a notice, its node vanished, or it failed."""
    step: int
    """The newest checkpoint's step."""
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens next, and why."""

    go_on: bool
    reason: str


def decide(history: Sequence[Ended], max_failures: int, max_preemptions: int) -> Decision:
    """Whether to start again after `history`, oldest first, never empty; -1 is no limit."""
    last = history[-1]
    taken = sum(ended.kind != "failed" for ended in history)
    if last.kind != "failed":
        what = "left on a notice" if last.kind == "left" else "lost its node"
        if 0 <= max_preemptions < taken:
            return Decision(
                False,
                f"the run {what} for the {taken}. time, more than max_preemption_failures "
                f"{max_preemptions}; its newest checkpoint is step {last.step}; start it again "
                "with the same run name, on nodes that stay",
            )
        idle = _in_a_row(history, "lost")
        if idle > MAX_IDLE_LOSSES:
            return Decision(
                False,
                f"{idle} nodes in a row were lost before a new checkpoint after step {last.step}; "
                "lower save_steps, or use nodes that stay",
            )
        return Decision(
            True, f"the run {what} after step {last.step}; starting again ({taken} so far)"
        )
    row = _in_a_row(history, "failed")
    if row > max_failures:
        return Decision(
            False,
            f"the run failed {row} times in a row after step {last.step} without getting to a new "
            f"checkpoint; the last time: {last.reason}",
        )
    return Decision(True, f"a worker failed after step {last.step} ({last.reason}); starting again")


def _in_a_row(history: Sequence[Ended], kind: str) -> int:
    """How many of the latest starts ended like this at the same checkpoint as the last one."""
    count = 0
    for ended in reversed(history):
        if ended.step != history[-1].step:
            break
        count += ended.kind == kind
    return count

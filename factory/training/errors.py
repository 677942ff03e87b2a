"""How a run ends early: by an error that a person must mend, or by a notice."""

from __future__ import annotations


class TrainingError(Exception):
    """A run that cannot go on; the message says what, where, and what to do."""


class Interrupted(Exception):
    """A run that left its place on a notice, with everything saved; another start goes on."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"{reason} after step {step}")
        self.step, self.reason = step, reason

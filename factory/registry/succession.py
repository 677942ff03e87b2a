"""The line of champions, read from the promotion log. Pure.

    succession(history)      # (1, 4): version 4 is champion, a rollback returns to version 1
    head(history)            # the last decision that moved the champion

A promotion adds a version to the line, a rollback takes the last one away, a refusal changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory.ledger.records import Promotion


def succession(history: Sequence[Promotion]) -> tuple[int, ...]:
    """Versions of the line, the champion of today last; empty when nothing was promoted."""
    line: list[int] = []
    for entry in history:
        if entry.version is None or entry.action == "refuse":
            continue
        if entry.action == "rollback":
            line.pop()
        if not line or line[-1] != entry.version:
            line.append(entry.version)
    return tuple(line)


def head(history: Sequence[Promotion]) -> Promotion | None:
    """The last promotion or rollback; None when there was none."""
    return next((entry for entry in reversed(history) if entry.action != "refuse"), None)

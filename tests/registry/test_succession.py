from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from factory.ledger.records import Action, Promotion
from factory.registry.succession import head, succession


def entry(action: Action, version: int, previous: int | None = None) -> Promotion:
    return Promotion(
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        name="helpdesk",
        action=action,
        version=version,
        previous=previous,
    )


def test_rollbacks_go_back_one_champion_at_a_time() -> None:
    log = [entry("promote", 1), entry("promote", 2), entry("refuse", 3), entry("promote", 4)]
    assert succession(log) == (1, 2, 4)
    log.append(entry("rollback", 2))
    assert succession(log) == (1, 2)
    log.append(entry("rollback", 1))
    assert succession(log) == (1,)
    log.append(entry("promote", 4))
    assert succession(log) == (1, 4)


def test_head_skips_refusals() -> None:
    assert head([]) is None
    log = [entry("promote", 1), entry("refuse", 2)]
    assert head(log) == log[0]
    assert head([entry("refuse", 2)]) is None


@given(st.lists(st.sampled_from(["promote", "rollback", "refuse"]), max_size=30))
def test_the_champion_is_what_the_head_says(actions: list[Action]) -> None:
    log: list[Promotion] = []
    for number, action in enumerate(actions, start=1):
        line = succession(log)
        if action == "rollback":
            if len(line) < 2:
                continue
            log.append(entry("rollback", line[-2], line[-1]))
        else:
            log.append(entry(action, number, line[-1] if line else None))
    line, last = succession(log), head(log)
    assert (line[-1] if line else None) == (last.version if last else None)
    assert len(set(line)) == len(line)

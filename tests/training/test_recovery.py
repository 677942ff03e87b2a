from hypothesis import given
from hypothesis import strategies as st

from factory.training.recovery import MAX_IDLE_LOSSES, Ended, decide

ENDED = st.builds(
    Ended,
    kind=st.sampled_from(["left", "lost", "failed"]),
    step=st.integers(0, 3),
    reason=st.just("out of luck"),
)


def fail(step: int) -> Ended:
    return Ended("failed", step, "division by zero")


def test_failures_at_the_same_checkpoint_stop_the_run_with_a_diagnosis() -> None:
    assert decide([fail(10)], 2, -1).go_on
    assert decide([fail(10), fail(10)], 2, -1).go_on
    stopped = decide([fail(10), fail(10), fail(10)], 2, -1)
    assert not stopped.go_on
    assert "3 times in a row after step 10" in stopped.reason
    assert "division by zero" in stopped.reason


def test_a_new_checkpoint_clears_the_failures_before_it() -> None:
    assert decide([fail(10), fail(10), fail(20)], 2, -1).go_on


def test_nodes_taken_away_are_not_failures() -> None:
    left = Ended("left", 10, "notice")
    assert decide([fail(10), left, fail(10), left], 2, -1).go_on
    assert decide([left] * 50, 0, -1).go_on
    assert not decide([left, left], 0, 1).go_on


def test_a_run_that_never_reaches_a_checkpoint_between_losses_stops() -> None:
    lost = Ended("lost", 10, "node died")
    assert decide([lost] * MAX_IDLE_LOSSES, 2, -1).go_on
    stopped = decide([lost] * (MAX_IDLE_LOSSES + 1), 2, -1)
    assert "lower save_steps" in stopped.reason
    assert not stopped.go_on
    assert decide([*[lost] * MAX_IDLE_LOSSES, Ended("lost", 20, "node died")], 2, -1).go_on


@given(history=st.lists(ENDED, min_size=1, max_size=12), failures=st.integers(0, 3))
def test_no_run_fails_for_ever(history: list[Ended], failures: int) -> None:
    last = history[-1].step
    again = [*history, *[fail(last)] * (failures + 1)]
    assert not decide(again, failures, -1).go_on

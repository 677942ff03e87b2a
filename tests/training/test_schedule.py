import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training.config import TrainConfig
from factory.training.schedule import Schedule

KINDS = st.sampled_from(["linear", "cosine", "constant"])


def plan(**arguments: object) -> Schedule:
    return Schedule.plan(TrainConfig.model_validate(arguments), examples=100)


def test_epochs_count_only_without_steps_and_seconds() -> None:
    assert plan(num_train_epochs=2, per_device_train_batch_size=8).max_steps == 25
    assert plan(max_steps=4).max_steps == 4
    assert plan(max_train_seconds=60).max_steps is None


@given(
    kind=KINDS,
    step=st.integers(0, 500),
    elapsed=st.floats(0, 500),
    warmup=st.integers(0, 50),
)
def test_the_rate_is_positive_and_never_above_its_peak(
    kind: str, step: int, elapsed: float, warmup: int
) -> None:
    schedule = plan(
        lr_scheduler_type=kind, max_steps=200, max_train_seconds=100, warmup_steps=warmup
    )
    assert 0 < schedule.factor(step, elapsed) <= 1
    assert 0 <= schedule.progress(step, elapsed) <= 1


@given(kind=KINDS, elapsed=st.lists(st.floats(0, 120), min_size=2, max_size=10))
def test_after_warm_up_the_rate_only_falls(kind: str, elapsed: list[float]) -> None:
    schedule = plan(lr_scheduler_type=kind, max_train_seconds=100, warmup_steps=0)
    factors = [schedule.factor(step, at) for step, at in enumerate(sorted(elapsed))]
    assert factors == sorted(factors, reverse=True)


def test_it_ends_with_the_first_limit_that_is_reached() -> None:
    schedule = plan(max_steps=10, max_train_seconds=60)
    assert schedule.done(9, 59.9) is None
    assert schedule.done(10, 1) == "10 of 10 steps done"
    assert "60 seconds" in (schedule.done(3, 60) or "")


def test_a_budget_anneals_on_elapsed_time() -> None:
    schedule = plan(max_train_seconds=100, warmup_steps=0)
    assert schedule.factor(3, 25) == pytest.approx(0.75)
    assert schedule.factor(900, 25) == pytest.approx(0.75)


def test_remaining_time_follows_the_pace() -> None:
    schedule = plan(max_steps=100)
    assert schedule.remaining_seconds(25, 10) == pytest.approx(30)
    assert schedule.remaining_seconds(0, 0) is None

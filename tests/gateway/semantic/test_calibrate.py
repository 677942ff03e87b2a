from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from factory.gateway.semantic.calibrate import STEPS, calibrate, needed, upper_bound


def labelled(different: list[float], equal: list[float]) -> tuple[list[float], list[bool]]:
    return different + equal, [False] * len(different) + [True] * len(equal)


def test_clean_data_gives_the_loosest_threshold() -> None:
    scores, same = labelled([0.0] * 400, [0.9] * 50)
    found = calibrate(scores, same, max_false_hits=0.01)
    assert found.threshold == STEPS[-1]
    assert found.bound < 0.01
    assert (found.hits, found.hit_rate, found.false_hits) == (50, 1.0, 0)
    assert "95% sure" in found.reasons[0]


def test_the_threshold_stands_above_the_false_hits() -> None:
    scores, same = labelled([0.0] * 600 + [0.8] * 60, [0.7] * 30 + [0.95] * 70)
    found = calibrate(scores, same, max_false_hits=0.01)
    assert found.threshold is not None
    assert 0.8 < found.threshold <= 0.95
    assert found.hit_rate == 0.7


def test_too_few_pairs_switch_it_off_and_say_how_many_are_needed() -> None:
    scores, same = labelled([0.0] * 298, [1.0] * 298)
    found = calibrate(scores, same, max_false_hits=0.01, confidence=0.95)
    assert found.threshold is None
    assert found.hits == found.false_hits == 0
    assert "label at least 299" in found.reasons[0]
    scores, same = labelled([0.0] * 299, [1.0] * 299)
    assert calibrate(scores, same, max_false_hits=0.01).threshold is not None


def test_certain_look_alikes_switch_it_off() -> None:
    scores, same = labelled([1.0] * 50 + [0.0] * 950, [1.0] * 100)
    found = calibrate(scores, same, max_false_hits=0.01)
    assert found.threshold is None
    assert "even the strictest threshold" in found.reasons[0]


def test_no_pair_at_all_is_off() -> None:
    assert calibrate([], [], max_false_hits=0.01).threshold is None


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 100), (7, 2000)])
def test_the_bound_is_the_exact_binomial_one(k: int, n: int) -> None:
    bound = upper_bound(k, n, 0.95)
    assert binom.cdf(k, n, bound) == pytest.approx(0.05)


def test_needed_is_the_smallest_number_that_can_pass() -> None:
    assert upper_bound(0, needed(0.01, 0.95), 0.95) <= 0.01
    assert upper_bound(0, needed(0.01, 0.95) - 1, 0.95) > 0.01


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        calibrate([0.5], [], max_false_hits=0.01)
    with pytest.raises(ValueError, match="must descend"):
        calibrate([0.5], [True], max_false_hits=0.01, steps=[0.5, 0.6])


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=400),
    st.floats(0.005, 0.2),
)
def test_a_threshold_never_has_a_bound_over_the_limit(
    pairs: list[tuple[float, bool]], limit: float
) -> None:
    found = calibrate([x for x, _ in pairs], [y for _, y in pairs], max_false_hits=limit)
    if found.threshold is None:
        assert found.reasons[0].startswith("off")
    else:
        assert found.bound <= limit


def test_the_promise_is_kept_as_often_as_promised() -> None:
    """On scores whose true rate is known, over-the-limit thresholds are at most about 5 %."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(400):
        scores = rng.random(500)
        found = calibrate(scores, np.zeros(500, dtype=bool), max_false_hits=0.1)
        true_rate = 0.0 if found.threshold is None else 1 - found.threshold
        broken += true_rate > 0.1
    assert broken <= 0.05 * 400 + 3 * (0.05 * 0.95 * 400) ** 0.5

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.evaluation.compare import compare_scores
from factory.evaluation.results import EvaluationError, wilson

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def split(pairs: list[tuple[bool, bool]]) -> tuple[list[bool], list[bool]]:
    return [before for before, _ in pairs], [after for _, after in pairs]


@settings(max_examples=25, deadline=None)
@given(PAIRS)
def test_interval_holds_the_difference_and_mirrors(pairs: list[tuple[bool, bool]]) -> None:
    before, after = split(pairs)
    there = compare_scores(before, after, suite_hash="s")
    back = compare_scores(after, before, suite_hash="s")
    assert there.low - 1e-12 <= there.difference <= there.high + 1e-12
    assert there.difference == pytest.approx(there.candidate_score - there.base_score)
    assert back.difference == pytest.approx(-there.difference)
    assert (back.gained, back.lost) == (there.lost, there.gained)
    assert back.p_value == pytest.approx(there.p_value)
    assert 0 <= there.p_value <= 1


def test_the_same_answers_are_no_difference() -> None:
    found = compare_scores([True, False] * 20, [True, False] * 20, suite_hash="s")
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    before, after = [False] * 10 + [True] * 30, [True] * 39 + [False]
    found = compare_scores(before, after, suite_hash="s")
    assert (found.gained, found.lost) == (10, 1)
    assert found.p_value == pytest.approx(2 * (1 + 11) / 2**11)


def test_a_clear_gain_lies_above_zero_and_is_reproducible() -> None:
    draw = random.Random(3)
    before = [draw.random() < 0.2 for _ in range(200)]
    after = [draw.random() < 0.6 for _ in range(200)]
    found = compare_scores(before, after, suite_hash="s", seed=5)
    assert 0.2 < found.low < found.difference < found.high < 0.6
    assert found == compare_scores(before, after, suite_hash="s", seed=5)
    assert "gained" in str(found)


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    before, after = [False] * 60 + [True] * 40, [False] * 40 + [True] * 60
    found = compare_scores(before, after, suite_hash="s")
    assert found.low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.02)
    assert found.high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.02)


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False])])
def test_unaligned_scores_are_refused(before: list[bool], after: list[bool]) -> None:
    with pytest.raises(EvaluationError, match="cannot compare"):
        compare_scores(before, after, suite_hash="s")


def test_wilson_matches_the_published_example() -> None:
    low, high = wilson(81, 263)  # Newcombe (1998), table I
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)

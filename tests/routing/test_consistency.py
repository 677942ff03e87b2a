"""When sampled answers count as agreeing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.routing.consistency import agree


@pytest.mark.parametrize(
    ("answers", "best", "accept"),
    [
        (["Paris.", "paris", " PARIS "], 0, True),
        (["Lyon", "Paris.", "paris"], 1, False),
        (["Paris", "Paris", "Paris", "Lyon"], 0, True),
        (['{"a": 1, "b": 2}', '{"b":2,"a":1}'], 0, True),
        (['{"a": 1}', '{"a": 2}'], 0, False),
        (["It costs 12 euros a month", "It costs 21 euros a month"], 0, False),
        (["You can cancel it", "You cannot cancel it"], 0, False),
        (["You don't need a card", "You do need a card"], 0, False),
        (["Send it back within 30 days", "Within 30 days, send it back"], 0, True),
        (["", ""], 0, False),
    ],
)
def test_agreement(answers, best, accept):
    agreement = agree(answers, threshold=0.6)
    assert (agreement.best, agreement.verdict.accept) == (best, accept)
    assert agreement.verdict.reasons


def test_one_answer_has_nothing_to_be_held_against_it():
    assert agree(["x"], 0.9).verdict.accept
    assert agree(["x"], 0.9).verdict.confidence is None
    with pytest.raises(ValueError, match="at least one"):
        agree([], 0.9)


@given(st.lists(st.text(max_size=60), min_size=2, max_size=6), st.floats(0, 1))
def test_any_text_gives_a_verdict_that_does_not_depend_on_the_order(answers, threshold):
    forwards, backwards = agree(answers, threshold), agree(answers[::-1], threshold)
    assert 0 <= forwards.best < len(answers)
    assert 0 <= forwards.verdict.confidence <= 1
    assert forwards.verdict.confidence == pytest.approx(backwards.verdict.confidence)

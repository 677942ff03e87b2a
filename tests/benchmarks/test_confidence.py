"""Figures of an answer's tokens, and how they are compared."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.confidence import Said, apgr, beyond, calibration_error, in_label, scores


def said(*pieces: str, chances: tuple[float, ...]) -> Said:
    """An answer of these tokens, with their probabilities; the second likeliest has the rest."""
    given = np.array(chances)
    return Said(np.log(given), 2 * given - 1, -np.log(given), pieces)


def test_the_label_is_found_among_the_tokens() -> None:
    answer = said("It is ", "async", "io", ".", "", chances=(0.5, 0.9, 0.8, 0.4, 0.99))
    assert in_label(answer, ["asyncio", "io"]) == [1, 2]
    assert in_label(answer, ["json"]) == [0, 1, 2, 3, 4]


def test_each_score_is_what_it_is_called() -> None:
    found = scores(said("js", "on", "", chances=(0.5, 0.8, 1.0)), ["json"])
    assert found["geometric_mean"] == pytest.approx(0.4 ** (1 / 3))
    assert found["least_probability"] == pytest.approx(0.5)
    assert found["product"] == found["label_product"] == pytest.approx(0.4)
    assert found["label_geometric_mean"] == pytest.approx(0.4**0.5)
    assert found["first_margin"] == found["least_margin"] == pytest.approx(0.0)
    assert found["most_entropy"] == pytest.approx(np.log(0.5))


def test_a_score_that_knows_gains_over_one_that_does_not() -> None:
    rng = np.random.default_rng(3)
    right = (rng.random(300) < 0.6).astype(np.float32)
    knows, guesses = right + rng.normal(0, 0.3, 300), rng.random(300)
    assert apgr(knows, right) > 0.7 > 0.6 > apgr(guesses, right)
    low, high = beyond(knows, guesses, right)
    assert 0 < low < high
    low, high = beyond(knows, knows, right)
    assert low == high == 0


def test_chances_that_come_true_are_calibrated() -> None:
    rng = np.random.default_rng(4)
    chances = rng.random(20_000)
    right = (rng.random(20_000) < chances).astype(np.float32)
    assert calibration_error(chances, right) < 0.02
    assert calibration_error(np.clip(chances + 0.3, 0, 1), right) > 0.15

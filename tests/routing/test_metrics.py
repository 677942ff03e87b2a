"""APGR and CPT on curves that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.routing import metrics
from factory.routing.errors import RoutingError
from factory.routing.report import compare, plot

WEAK = np.array([1, 0, 0, 1, 0, 1, 0, 1, 0, 1.0])
STRONG = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1.0])


def test_a_curve_by_hand():
    curve = metrics.curve_of([0, 9, 8, 0, 1, 0, 7, 0, 0, 0], WEAK, STRONG)
    assert curve.share.tolist() == [0, 0.1, 0.2, 0.3, 0.4, 1]
    assert curve.quality.tolist() == [0.5, 0.6, 0.7, 0.7, 0.8, 0.8]
    areas = 0.1 * (1 / 6 + 3 / 6 + 4 / 6 + 5 / 6) + 0.6
    assert metrics.apgr(curve) == pytest.approx(areas)
    assert metrics.cpt(curve, 0.5) == pytest.approx(15)
    assert metrics.cpt(curve, 0.95) == pytest.approx(30 + 10 * (0.95 - 2 / 3) * 3)


def test_random_mixing_recovers_half_and_the_oracle_all_with_the_fewest_calls():
    random, oracle = metrics.random_curve(WEAK, STRONG), metrics.oracle_curve(WEAK, STRONG)
    assert metrics.apgr(random) == pytest.approx(0.5)
    assert metrics.apgr_of_ten(random) == pytest.approx(0.55)
    assert metrics.cpt(random, 0.8) == pytest.approx(80)
    assert metrics.cpt(oracle, 1.0) == pytest.approx(30)


def test_thresholds_at_quantiles_by_hand():
    score = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    # None, the upper half, which holds all three that gain, and all.
    assert metrics.apgr_of_thresholds(score, WEAK, STRONG, 2) == pytest.approx(0.25 + 0.5)
    assert metrics.apgr_of_thresholds(np.zeros(10), WEAK, STRONG) == pytest.approx(0.5)
    with pytest.raises(RoutingError, match="no better"):
        metrics.apgr_of_thresholds(score, STRONG, WEAK)


@given(st.lists(st.floats(-1, 1), min_size=10, max_size=10))
def test_no_router_beats_the_oracle(score):
    curve = metrics.curve_of(score, WEAK, STRONG)
    best = metrics.oracle_curve(WEAK, STRONG)
    assert metrics.apgr(curve) <= metrics.apgr(best) + 1e-9
    assert (np.interp(curve.share, best.share, best.quality) >= curve.quality - 1e-9).all()


def test_the_order_of_equal_scores_does_not_matter():
    score = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0, 0])
    there = metrics.curve_of(score, WEAK, STRONG)
    back = metrics.curve_of(score[::-1], WEAK[::-1], STRONG[::-1])
    assert metrics.apgr(there) == pytest.approx(metrics.apgr(back))


def test_without_a_gap_there_is_nothing_to_recover():
    with pytest.raises(RoutingError, match="no better"):
        metrics.apgr(metrics.curve_of(STRONG, STRONG, WEAK))
    with pytest.raises(RoutingError, match="no request"):
        metrics.curve_of([], [], [])


def test_a_report_names_all_contestants(tmp_path):
    found = compare({"router": [0, 9, 8, 0, 1, 0, 7, 0, 0, 0]}, WEAK, STRONG)
    assert [row[0] for row in found.rows()] == [
        "router",
        "random",
        "oracle",
        "always weak",
        "always strong",
    ]
    assert found.best_single == "strong"
    assert found.json()["router"]["cpt50"] == pytest.approx(15)
    plot(found, tmp_path / "plot.png", marks=[("calibrated", 0.2, 0.7)])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

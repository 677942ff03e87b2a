"""Calibrated thresholds: they hold as often as they promise, and refuse when they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import beta

from factory.routing.bounds import needed, p_value, upper_bound
from factory.routing.calibration import (
    Target,
    Threshold,
    confidence_threshold,
    outdated,
    picks,
    router_threshold,
    subject,
)
from factory.routing.errors import RoutingError
from factory.routing.estimate import Estimate

GRID = np.linspace(-0.2, 0.8, 26)
PRICES = (10.0, 1000.0)
PROBABILITIES = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=st.floats(0, 1)
)


def traffic(rng, n):
    """Requests of varying difficulty, a router that sees part of it, and the labels."""
    p = np.clip(np.stack([rng.beta(2, 1.5, n), rng.beta(9, 1, n)], 1), 0, 1)
    seen = np.clip(p + rng.normal(0, 0.15, p.shape), 0, 1)
    return seen, (rng.random(p.shape) < p).astype(float)


def quality(seen, good, threshold):
    return good[np.arange(len(good)), picks(seen, threshold)].mean()


def test_the_binomial_bound_is_clopper_and_pearsons():
    losses = np.r_[np.ones(7), np.zeros(93)]
    assert upper_bound(losses, 0.05) == pytest.approx(beta.ppf(0.95, 8, 93), abs=1e-9)
    assert p_value(losses, upper_bound(losses, 0.05)) == pytest.approx(0.05, abs=1e-6)


def test_hoeffding_bentkus_holds_on_losses_between_0_and_1():
    rng = np.random.default_rng(0)
    wrong = [p_value(rng.beta(0.5, 1.5, 60), 0.25) <= 0.1 for _ in range(400)]
    assert np.mean(wrong) <= 0.1


@pytest.mark.parametrize("target", [Target("quality", 0.8), Target("cost", 400.0)])
def test_the_target_is_missed_no_more_often_than_promised(target):
    rng = np.random.default_rng(1)
    far_seen, far_good = traffic(rng, 40_000)
    missed = certified = 0
    for _ in range(100):
        seen, good = traffic(rng, 600)
        found = router_threshold(seen, good, PRICES, GRID, target, confidence=0.9)
        if found.value is None:
            continue
        certified += 1
        if target.kind == "quality":
            missed += quality(far_seen, far_good, found.value) < target.value
        else:
            price = np.asarray(PRICES)[picks(far_seen, found.value)].mean()
            missed += price > target.value
    assert certified > 75
    assert missed / 100 <= 0.1


def test_selective_accuracy_is_missed_no_more_often_than_promised():
    rng = np.random.default_rng(2)
    missed = certified = 0
    for _ in range(100):
        sure = rng.random(500)
        right = rng.random(500) < sure
        found = confidence_threshold(sure, right, Target("quality", 0.8), confidence=0.9)
        if found.value is not None:
            certified += 1
            missed += (1 + min(found.value, 1)) / 2 < 0.8
    assert certified > 65
    assert missed / 100 <= 0.1


def test_a_found_threshold_says_what_it_stands_on():
    seen, good = traffic(np.random.default_rng(3), 2000)
    found = router_threshold(seen, good, PRICES, GRID, Target("quality", 0.8))
    assert found.value is not None
    assert found.achieved == pytest.approx(quality(seen, good, found.value))
    assert 0.8 <= found.bound <= found.achieved
    assert found.reasons
    assert found.cheap_share > 0.1
    assert Threshold.parse(found.detail()) == found


@pytest.mark.parametrize(
    ("n", "target", "says"),
    [
        (20, Target("quality", 0.9), "needs at least"),
        (40, Target("quality", 0.85), "needs about"),
        (2000, Target("quality", 0.999), "out of reach"),
        (2000, Target("cost", 5.0), "costs as much or more"),
    ],
)
def test_it_refuses_with_a_reason(n, target, says):
    seen, good = traffic(np.random.default_rng(4), n)
    found = router_threshold(seen, good, PRICES, GRID, target)
    assert found.value is None
    assert says in found.reasons[0]
    assert (found.needed is not None) == ("needs" in says)
    assert found.needed is None or found.needed > n
    assert Threshold.parse(found.detail()) == found


def test_the_number_that_is_said_to_be_needed_is_about_enough():
    rng = np.random.default_rng(4)
    short = router_threshold(*traffic(rng, 60), PRICES, GRID, Target("quality", 0.85))
    enough = router_threshold(*traffic(rng, short.needed), PRICES, GRID, Target("quality", 0.85))
    assert enough.value is not None
    assert p_value(np.zeros(int(needed(0, 0.1, 0.05))), 0.1) <= 0.05
    assert p_value(np.zeros(int(needed(0, 0.1, 0.05)) - 1), 0.1) > 0.05


def test_a_cost_target_above_the_dearest_tier_needs_no_data():
    found = router_threshold(
        np.zeros((1, 2)), np.ones((1, 2)), PRICES, GRID, Target("cost", 2000.0)
    )
    assert found.value is not None


def test_the_cost_of_a_cascade_counts_the_wasted_attempt():
    rng = np.random.default_rng(5)
    sure = rng.random(3000)
    found = confidence_threshold(sure, sure > 0.3, Target("cost", 300.0), prices=(100.0, 1000.0))
    climbs = np.mean(sure < found.value)
    assert 0.1 < climbs < 0.2
    assert 100 + 1000 * climbs == pytest.approx(found.achieved, rel=0.05)


@given(PROBABILITIES, st.floats(-1, 1), st.floats(0, 1))
def test_a_higher_threshold_never_picks_a_higher_tier(p_good, threshold, more):
    assert (picks(p_good, threshold + more) <= picks(p_good, threshold)).all()


@given(PROBABILITIES, st.floats(-1, 1))
def test_one_request_is_routed_as_many_are(p_good, threshold):
    tiers = tuple(range(1, p_good.shape[1] + 1))
    for row, column in zip(p_good, picks(p_good, threshold), strict=True):
        estimate = Estimate(tuple(zip(tiers, row.tolist(), strict=True)))
        assert estimate.lowest(tiers, threshold) == tiers[column]


def test_a_calibration_is_bound_to_its_models():
    before = subject({"1": "small@3", "2": "large@1"})
    assert before == subject({"2": "large@1", "1": "small@3"})
    assert outdated(before, before) == ()
    assert "1=small@4" in outdated(before, subject({"1": "small@4", "2": "large@1"}))[0]
    assert "2=nothing" in outdated(before, subject({"1": "small@3"}))[0]


def test_a_model_that_had_not_answered_yet_may_have_any_version():
    before = subject({"1": "small@*"})
    assert outdated(before, subject({"1": "small@9f+helpdesk@3"})) == ()
    assert outdated(before, subject({"1": "small@3"})) == ()
    assert outdated(before, subject({"1": "other@3"}))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Target("quality", 1.5),
        lambda: Target("cost", float("nan")),
        lambda: router_threshold([[0.5]], [[2.0]], [1.0], [0.0], Target("quality", 0.5)),
        lambda: router_threshold([[np.nan]], [[1.0]], [1.0], [0.0], Target("quality", 0.5)),
        lambda: router_threshold([[0.5, 1]], [[1.0]], [1.0], [0.0], Target("quality", 0.5)),
        lambda: confidence_threshold([0.1, 0.2], [1.0], Target("quality", 0.5)),
        lambda: Threshold.parse({"value": 0.5}),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(RoutingError):
        call()

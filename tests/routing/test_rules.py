"""The first tier: rules before what was learned, what was learned before the default."""

from __future__ import annotations

import pytest

from factory.config import Endpoint, Routing
from factory.routing.estimate import Estimate
from factory.routing.features import Features
from factory.routing.rules import choose

EASY = Features(prompt_tokens=10, characters=40, turns=1, matched=())
HARD = Features(prompt_tokens=10, characters=40, turns=1, matched=("proof",))
ENDPOINT = Endpoint(team="t", tiers=(0, 1, 2, 3))
ESTIMATE = Estimate(((1, 0.5), (2, 0.8), (3, 0.9)))


def route(features=EASY, endpoint=ENDPOINT, available=(1, 2, 3), learned=True, threshold=0.2):
    return choose(features, endpoint, available, Routing(learned=learned), ESTIMATE, threshold)


@pytest.mark.parametrize(("threshold", "tier"), [(0.5, 1), (0.2, 2), (0.05, 3), (-1, 3)])
def test_the_lowest_tier_that_is_good_enough(threshold, tier):
    assert route(threshold=threshold).tier == tier
    assert not route(threshold=threshold).degraded


def test_rules_come_first():
    assert route(HARD, threshold=-1).tier == 2
    assert route(HARD, threshold=1).tier == 2


@pytest.mark.parametrize("kwargs", [{"learned": False}, {"threshold": None}])
def test_without_a_calibrated_threshold_the_default_holds(kwargs):
    assert route(**kwargs).tier == 1


def test_a_tier_that_cannot_answer_is_replaced():
    assert route(available=(1, 3)).tier == 3
    assert not route(available=(1, 3)).degraded
    assert route(available=(1,)).tier == 1
    assert route(available=(1,)).degraded


def test_a_restricted_endpoint_never_reaches_tier_3():
    restricted = Endpoint(team="t", tiers=(1, 3), sensitivity="restricted")
    assert route(endpoint=restricted, threshold=-1).tier == 1


def test_an_estimate_of_other_tiers_says_nothing():
    assert (
        choose(
            EASY, Endpoint(team="t", tiers=(1, 2)), (1, 2), Routing(), Estimate(((3, 0.9),)), 0.0
        ).tier
        == 1
    )

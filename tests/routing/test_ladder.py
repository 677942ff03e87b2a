"""Invariants of the pure decisions: first tier, verdict, next step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Endpoint, Routing
from factory.routing.confidence import confidence, judge
from factory.routing.features import Features
from factory.routing.ladder import MAX_ATTEMPTS, Ladder, Rung, Tried, climbable, next_step
from factory.routing.rules import choose

TIERS = st.sets(st.integers(0, 3), min_size=1).map(lambda s: tuple(sorted(s)))
SENSITIVITY = st.sampled_from(["restricted", "internal", "public"])
ENDPOINTS = st.builds(
    lambda tiers, sensitivity: Endpoint(team="t", tiers=tiers, sensitivity=sensitivity),
    TIERS,
    SENSITIVITY,
)
RUNGS = st.lists(
    st.builds(
        Rung, st.integers(1, 3), external=st.booleans(), why_not=st.sampled_from(["", "off"])
    ),
    unique_by=lambda rung: rung.tier,
)
FEATURES = st.builds(
    Features,
    prompt_tokens=st.integers(0, 3000),
    characters=st.just(0),
    turns=st.just(1),
    matched=st.sampled_from([(), ("proof",)]),
)
# What a tier does each time it is asked: its confidence (None: unknown), or a kind of failure.
BEHAVIOURS = st.one_of(
    st.none(),
    st.floats(0, 1),
    st.sampled_from(["passing", "lasting", "rejected"]),
)


def climb(ladder, start, behaviours, threshold):
    """Run the cascade on paper; returns the last step and the tiers that were asked."""
    tried = []
    while True:
        step = next_step(ladder, start, tried)
        assert step.reasons
        if step.action != "try":
            return step, tried
        behaviour = behaviours[step.tier]
        if isinstance(behaviour, str):
            tried.append(
                Tried(
                    step.tier,
                    failure=behaviour,
                    retryable=behaviour == "passing",
                    rejected=behaviour == "rejected",
                )
            )
        else:
            logprobs = None if behaviour is None else [math.log(behaviour or 1e-300)]
            tried.append(Tried(step.tier, judge(logprobs, threshold)))


@given(ENDPOINTS, RUNGS)
def test_a_ladder_stays_within_the_endpoint_and_its_sensitivity(endpoint, rungs):
    ladder = climbable(endpoint, rungs)
    known = {rung.tier: rung for rung in rungs}
    assert list(ladder.usable) == sorted(ladder.usable)
    for tier in ladder.usable:
        assert tier in endpoint.tiers
        assert not known[tier].why_not
        if endpoint.sensitivity == "restricted":
            assert tier != 3
            assert not known[tier].external
    blocked = {tier for tier, why in ladder.blocked if why}
    assert blocked | set(ladder.usable) == set(endpoint.tiers) - {0}


@given(ENDPOINTS, st.sets(st.integers(0, 3)), FEATURES)
def test_the_first_tier_is_available_allowed_and_explained(endpoint, available, features):
    route = choose(features, endpoint, available, Routing())
    assert route.reasons
    allowed = {t for t in available if t in endpoint.tiers and t >= 1}
    if endpoint.sensitivity == "restricted":
        allowed -= {3}
    if allowed:
        assert route.tier in allowed
    else:
        assert route.tier is None


@given(ENDPOINTS, st.sets(st.integers(1, 3)), st.integers(0, 2000), st.integers(0, 2000))
def test_a_longer_prompt_never_starts_lower(endpoint, available, one, other):
    def start(tokens):
        return choose(Features(tokens, 0, 1, ()), endpoint, available, Routing()).tier or 0

    assert start(min(one, other)) <= start(max(one, other))


@given(ENDPOINTS, RUNGS, FEATURES, st.fixed_dictionaries({t: BEHAVIOURS for t in (1, 2, 3)}))
def test_a_climb_ends_within_bounds(endpoint, rungs, features, behaviours):
    ladder = climbable(endpoint, rungs)
    route = choose(features, endpoint, ladder.usable, Routing())
    if route.tier is None:
        return
    step, tried = climb(ladder, route.tier, behaviours, 0.5)
    assert {one.tier for one in tried} <= set(ladder.usable)
    for tier in ladder.usable:
        assert sum(one.tier == tier for one in tried) <= MAX_ATTEMPTS
    answered = [one.tier for one in tried if one.verdict is not None]
    if step.action == "answer":
        assert step.tier in answered
    else:
        assert answered == []
        rejected = tried[-1].rejected
        assert rejected or {one.tier for one in tried} == set(ladder.usable)


@given(
    st.sets(st.integers(1, 3), min_size=1).map(lambda s: tuple(sorted(s))),
    st.fixed_dictionaries({t: st.one_of(BEHAVIOURS) for t in (1, 2, 3)}),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_higher_threshold_never_answers_from_a_lower_tier(usable, behaviours, one, other):
    ladder = Ladder(usable)
    low, _ = climb(ladder, usable[0], behaviours, min(one, other))
    high, _ = climb(ladder, usable[0], behaviours, max(one, other))
    if low.action == "answer":
        assert high.action == "answer"
        assert high.tier >= low.tier


@pytest.mark.parametrize(
    ("ladder", "behaviours", "tier", "degraded"),
    [
        (Ladder((1,)), {1: 0.1}, 1, False),
        (Ladder((1,), ((3, "off"),)), {1: 0.1}, 1, True),
        (Ladder((1,), ((3, "off"),)), {1: 0.9}, 1, False),
        (Ladder((1, 3)), {1: 0.1, 3: 0.9}, 3, False),
        (Ladder((1, 3)), {1: 0.1, 3: "lasting"}, 1, True),
        (Ladder((1, 3)), {1: "lasting", 3: 0.9}, 3, False),
        (Ladder((1, 2, 3)), {1: 0.1, 2: 0.2, 3: "lasting"}, 2, True),
        (Ladder((1, 2, 3)), {1: 0.1, 2: "lasting", 3: 0.2}, 3, False),
    ],
)
def test_who_answers_and_whether_it_is_labelled(ladder, behaviours, tier, degraded):
    step, _ = climb(ladder, 1, behaviours, 0.5)
    assert (step.action, step.tier, step.degraded) == ("answer", tier, degraded)


def test_a_lesser_tier_that_stands_in_is_labelled():
    step, tried = climb(Ladder((1, 2, 3)), 3, {1: 0.9, 2: "lasting", 3: "lasting"}, 0.5)
    assert (step.action, step.tier, step.degraded) == ("answer", 1, True)
    assert [one.tier for one in tried] == [3, 2, 1]


@given(st.lists(st.floats(-50, 0)))
def test_confidence_is_a_probability(logprobs):
    assert 0 <= confidence(logprobs) <= 1


@given(st.lists(st.floats(-50, 0), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_verdict_is_monotone_in_the_threshold(logprobs, one, other):
    strict, lax = judge(logprobs, max(one, other)), judge(logprobs, min(one, other))
    assert lax.accept or not strict.accept


def test_strange_log_probabilities():
    assert confidence([]) == 0
    assert confidence([math.nan]) == 0
    assert confidence([-math.inf, 0.0]) == 0
    assert confidence([0.3]) == 1
    assert confidence([math.log(0.25), math.log(1.0)]) == pytest.approx(0.5)
    assert judge(None, 0.9).accept
    assert not judge([], 0.1).accept

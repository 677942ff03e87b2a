"""A shared budget: never exceeded, never wasted, and never held against a higher class."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.scaling.arbitration import Claim, arbitrate

CLAIMS = st.lists(
    st.builds(
        Claim,
        name=st.text("abcdefgh", min_size=1, max_size=3),
        wanted=st.integers(0, 12),
        floor=st.integers(0, 3),
        unit=st.sampled_from([0.5, 1.0, 2.0]),
        class_=st.sampled_from(["production", "internal", "batch"]),
        priority=st.integers(1, 100),
    ),
    max_size=7,
    unique_by=lambda claim: claim.name,
)


@given(claims=CLAIMS, budget=st.integers(0, 24))
def test_the_budget_is_neither_exceeded_nor_wasted(claims: list[Claim], budget: int) -> None:
    grants = arbitrate(claims, budget=budget)

    left = budget - sum(grants[one.name].replicas * one.unit for one in claims)
    assert left >= 0
    for one in claims:
        grant = grants[one.name]
        assert 0 <= grant.replicas <= one.wanted
        assert (grant.replicas < one.wanted) == bool(grant.reasons)
        if grant.replicas < one.wanted:
            assert one.unit > left


@given(claims=CLAIMS, budget=st.integers(0, 24))
def test_a_higher_class_never_notices_a_lower_one(claims: list[Claim], budget: int) -> None:
    production = [one for one in claims if one.class_ == "production"]
    alone = arbitrate(production, budget=budget)
    noisy = [one if one in production else replace(one, wanted=99) for one in claims]
    together = arbitrate(noisy, budget=budget)

    for one in production:
        assert together[one.name].replicas == alone[one.name].replicas


def test_floors_come_first_and_priority_weighs_the_rest() -> None:
    claims = [
        Claim(name="noisy", wanted=50, floor=0, priority=1),
        Claim(name="calm", wanted=5, floor=2, priority=3),
        Claim(name="batch", wanted=5, class_="batch"),
    ]
    grants = arbitrate(claims, budget=8)

    assert (grants["noisy"].replicas, grants["calm"].replicas) == (3, 5)
    assert "higher classes hold 8" in grants["batch"].reasons[0]
    assert arbitrate(claims, budget=2)["calm"].replicas == 2


def test_claims_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        arbitrate([Claim(name="a", wanted=1), Claim(name="a", wanted=1)], budget=1)
    with pytest.raises(ValueError, match="above 0"):
        arbitrate([Claim(name="a", wanted=1, unit=0)], budget=1)

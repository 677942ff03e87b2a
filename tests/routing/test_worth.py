"""When the cheap attempt is left out, and when an encoder is paid for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.routing import encoder
from factory.routing.worth import Attempt, worth

PRICES = st.integers(0, 10**9)
CHANCES = st.floats(0, 1)


def attempt(tier, price, answer_ms=100.0, ttft_ms=20.0):
    return Attempt(tier=tier, price_nusd=price, answer_ms=answer_ms, ttft_ms=ttft_ms)


@given(PRICES, PRICES, CHANCES)
def test_without_a_target_the_cheaper_plan_is_taken(cheap, dear, p_climb):
    choice = worth(attempt(1, cheap), attempt(2, dear), p_climb)
    assert choice.skip == (cheap + p_climb * dear > dear)
    assert choice.reasons


@given(PRICES, PRICES, CHANCES, st.floats(1, 5000))
def test_a_target_only_ever_adds_reasons_to_skip(cheap, dear, p_climb, target):
    small, large = attempt(1, cheap, 400.0), attempt(2, dear, 900.0, 50.0)
    if worth(small, large, p_climb).skip:
        assert worth(small, large, p_climb, target).skip


@pytest.mark.parametrize(
    ("cheap_ms", "dear_ttft_ms", "p_climb", "target", "skip"),
    [
        (900, 100, 0.01, 800, True),  # the cheap answer alone is late
        (500, 400, 0.30, 800, True),  # a climb is late, and many climb
        (500, 400, 0.02, 800, False),  # a climb is late, but hardly any climbs
        (300, 400, 0.30, 800, False),  # even a climb is in time
        (900, 2000, 0.10, 800, False),  # going straight would be later still
        (900, 100, 0.10, None, False),  # nobody asked
    ],
)
def test_the_latency_target(cheap_ms, dear_ttft_ms, p_climb, target, skip):
    cheap = attempt(1, 1, answer_ms=cheap_ms)
    dear = attempt(2, 1000, ttft_ms=dear_ttft_ms)
    assert worth(cheap, dear, p_climb, target).skip is skip


def test_a_chance_is_a_chance():
    with pytest.raises(ValueError, match="p_climb"):
        worth(attempt(1, 1), attempt(2, 2), 1.5)


@pytest.mark.parametrize(
    ("margin", "spread", "price", "ms", "slack", "use"),
    [
        (0.01, 0.05, 100, 40, 200, True),
        (0.01, 0.05, 100, 40, None, True),
        (0.01, 0.05, 100, 40, 30, False),  # too slow
        (0.01, 0.05, 900_000, 40, 200, False),  # too dear
        (0.40, 0.05, 100, 40, None, False),  # it will not change the decision
        (0.01, 0.0, 0, 1, None, False),  # it says what the first router says
    ],
)
def test_the_encoder_is_used_only_where_it_pays(margin, spread, price, ms, slack, use):
    choice = encoder.worth(
        margin=margin,
        spread=spread,
        dear_nusd=2_000_000,
        cheap_nusd=20_000,
        encoder_nusd=price,
        encoder_ms=ms,
        slack_ms=slack,
    )
    assert choice.use is use
    assert choice.reasons


@given(st.floats(0, 1), st.floats(0.001, 1), st.integers(1, 10**7), st.integers(0, 10**6))
def test_the_band_is_where_the_encoder_pays(margin, spread, gap, price):
    """A calibration looks at the band, a request at its own margin: they must agree."""
    edge = encoder.band(spread, gap, 0, price)
    choice = encoder.worth(
        margin=margin,
        spread=spread,
        dear_nusd=gap,
        cheap_nusd=0,
        encoder_nusd=price,
        encoder_ms=1.0,
        slack_ms=None,
    )
    if abs(margin - edge) > 1e-3 * spread and price / gap > 1e-9:
        assert choice.use is (margin < edge)

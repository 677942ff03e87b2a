"""A latency target bounds how long a tier is waited for, and never below what is usual."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from factory.routing.patience import TIMES, Usual, attempt

QUICK = Usual(answer_ms=400, ttft_ms=100, completion_tokens=20)


def test_without_a_target_the_engine_gets_its_own_time() -> None:
    allowed = attempt(whole=True, tokens=4, target_ms=None, usual=QUICK, most_s=120)
    assert (allowed.seconds, allowed.reason) == (120, "")


def test_a_stream_gets_a_few_times_its_target() -> None:
    allowed = attempt(whole=False, tokens=500, target_ms=800, usual=None, most_s=60)
    assert allowed.seconds == 2.4
    assert allowed.reason == "3 times the endpoint's target of 800 ms"


def test_a_whole_answer_gets_time_for_its_length_at_the_usual_pace() -> None:
    unknown = attempt(whole=True, tokens=100, target_ms=800, usual=None, most_s=120)
    known = attempt(whole=True, tokens=100, target_ms=800, usual=QUICK, most_s=120)
    assert unknown.seconds == 2.4 + 5
    assert known.seconds == 2.4 + 2


def test_what_is_usual_counts_where_the_target_is_a_dream() -> None:
    allowed = attempt(whole=False, tokens=1, target_ms=10, usual=QUICK, most_s=60)
    assert (allowed.seconds, allowed.reason) == (0.3, "3 times what is usual")


@given(
    whole=st.booleans(),
    tokens=st.integers(1, 10_000),
    target=st.floats(1, 1e6),
    answer=st.floats(0, 1e6),
    ttft=st.floats(0, 1e6),
    length=st.floats(0, 1e4),
)
def test_never_longer_than_the_engine_gets_nor_shorter_than_the_target(
    whole: bool, tokens: int, target: float, answer: float, ttft: float, length: float
) -> None:
    usual = Usual(answer_ms=answer, ttft_ms=ttft, completion_tokens=length)
    allowed = attempt(whole=whole, tokens=tokens, target_ms=target, usual=usual, most_s=120)
    assert min(120.0, TIMES * target / 1000) <= allowed.seconds <= 120
    assert bool(allowed.reason) == (allowed.seconds < 120)

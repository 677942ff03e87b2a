"""Invariants of the circuit breaker, over every order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from factory.config import Breaker as Limits
from factory.routing.breaker import Breaker, allow, cooldown_s, failed, succeeded

LIMITS = st.builds(
    Limits,
    failures=st.integers(1, 6),
    cooldown_s=st.floats(0.1, 30),
    max_cooldown_s=st.floats(1, 300),
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["allow", "succeeded", "failed"]), st.floats(0, 60)), max_size=60
)


def run(events, limits):
    """Play events, each some seconds after the last; yields time, event, before, after."""
    breaker, now = Breaker(), 0.0
    for event, wait in events:
        now += wait
        before = breaker
        if event == "allow":
            breaker = allow(breaker, now, limits).state
        elif event == "succeeded":
            breaker = succeeded(breaker).state
        else:
            breaker = failed(breaker, now, limits).state
        yield now, event, before, breaker


@given(EVENTS, LIMITS)
def test_it_never_waits_longer_than_the_maximum_and_always_lets_a_trial_through(events, limits):
    breaker, now = Breaker(), 0.0
    for at, _, _, after in run(events, limits):
        breaker, now = after, at
    answer = allow(breaker, now, limits)
    longest = limits.max_cooldown_s + 1e-6  # of rounding
    assert 0 <= answer.retry_after_s <= longest
    assert answer.ok or answer.reasons
    assert allow(breaker, now + longest, limits).ok


@given(EVENTS, LIMITS)
def test_one_trial_at_a_time(events, limits):
    for now, event, _, after in run(events, limits):
        if event != "allow":
            continue
        first = allow(after, now, limits)
        if after.state == "half_open":
            assert not first.ok
        if first.trial:
            assert not allow(first.state, now, limits).ok


@given(EVENTS, LIMITS)
def test_a_success_forgives_everything(events, limits):
    for _, event, _, after in run(events, limits):
        if event == "succeeded":
            assert after == Breaker()


@given(LIMITS)
def test_it_opens_after_exactly_the_configured_failures_in_a_row(limits):
    breaker = Breaker()
    for count in range(limits.failures):
        assert allow(breaker, 0.0, limits).ok, f"refused after {count} failures"
        breaker = failed(breaker, 0.0, limits).state
    assert not allow(breaker, 0.0, limits).ok


@given(LIMITS)
def test_failures_that_began_before_it_opened_do_not_lengthen_the_wait(limits):
    breaker = Breaker(state="open", trips=1, until=5.0)
    assert failed(breaker, 1.0, limits).state == breaker


def test_a_lost_trial_doubles_the_wait_and_a_silent_one_lapses():
    limits = Limits(failures=1, cooldown_s=10, max_cooldown_s=35)
    opened = failed(Breaker(), 0.0, limits)
    assert opened.reasons == ("circuit open for 10 s: 1 failures in a row",)
    trial = allow(opened.state, 10.0, limits)
    assert trial.trial
    again = failed(trial.state, 11.0, limits).state
    assert (again.state, again.until) == ("open", 31.0)
    silent = allow(again, 31.0, limits).state
    assert not allow(silent, 50.9, limits).ok
    assert allow(silent, 51.0, limits).trial
    assert [cooldown_s(trips, limits) for trips in (1, 2, 3, 4, 10_000)] == [10, 20, 35, 35, 35]

"""Rates: what passes in a minute, what a refusal costs, and what clients are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Limits
from factory.gateway.rates import UNLIMITED, Rates, duration, refusal

REQUESTS = Limits(requests_per_minute=6)
TOKENS = Limits(tokens_per_minute=100)
BOTH = Limits(requests_per_minute=6, tokens_per_minute=100)

steps = st.floats(0, 90, allow_nan=False) | st.sampled_from([0.0, 0.0, 0.001, 10.0, 60.0])
arrivals = st.lists(st.tuples(steps, st.integers(0, 140), st.integers(0, 140)), max_size=60)


def test_a_minute_of_requests_may_come_at_once_and_then_one_every_ten_seconds():
    rates = Rates()
    assert all(rates.admit([("team:a", REQUESTS)], 0, 5.0).ok for _ in range(6))
    seventh = rates.admit([("team:a", REQUESTS)], 0, 5.0)
    assert (seventh.ok, seventh.never, seventh.scope) == (False, False, "team:a")
    assert seventh.limit == "requests_per_minute"
    assert seventh.retry_after_s == pytest.approx(10)
    assert rates.admit([("team:a", REQUESTS)], 0, 15.0).ok
    assert not rates.admit([("team:a", REQUESTS)], 0, 15.0).ok
    assert rates.admit([("team:b", REQUESTS)], 0, 15.0).ok


def test_scopes_without_rates_are_let_through_without_a_trace():
    rates = Rates()
    assert rates.admit([("team:a", Limits()), ("key:b", Limits())], 10**9, 0.0) is UNLIMITED
    assert rates.admit([], 1, 0.0) is UNLIMITED
    assert UNLIMITED.headers() == {}


def test_a_refusal_by_one_scope_debits_no_other():
    rates = Rates()
    scopes = [("team:a", Limits(requests_per_minute=100)), ("key:k", REQUESTS)]
    for _ in range(6):
        assert rates.admit(scopes, 0, 0.0).ok
    for _ in range(50):
        assert rates.admit(scopes, 0, 0.0).scope == "key:k"
    team = rates.admit([("team:a", Limits(requests_per_minute=100))], 0, 0.0)
    assert team.reading("requests_per_minute").remaining == 93


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_wait_is_told_so_that_a_client_waits_once(order):
    rates = Rates()
    scopes = [("team:a", Limits(requests_per_minute=60)), ("key:k", Limits(tokens_per_minute=60))]
    scopes = scopes[::order]
    for _ in range(60):
        rates.admit(scopes, 1, 0.0)
    refused = rates.admit(scopes, 30, 0.0)
    assert (refused.scope, refused.limit) == ("key:k", "tokens_per_minute")
    assert refused.retry_after_s == pytest.approx(30)
    assert rates.admit(scopes, 30, 30.0).ok


def test_what_is_larger_than_the_limit_is_told_so_and_not_to_come_back():
    rates = Rates()
    refused = rates.admit([("team:a", BOTH)], 101, 0.0)
    assert (refused.ok, refused.never, refused.limit) == (False, True, "tokens_per_minute")
    error = refusal(refused)
    assert (error.status, error.code) == (413, "request_too_large")
    assert "100 tokens a minute" in error.message
    assert "wants 101" in error.message
    assert "Retry-After" not in error.headers
    assert rates.admit([("team:a", BOTH)], 100, 0.0).ok


def test_headers_are_those_of_openai_and_of_the_tightest_scope():
    rates = Rates()
    scopes = [("team:a", Limits(requests_per_minute=600, tokens_per_minute=6000)), ("key:k", BOTH)]
    assert rates.admit(scopes, 40, 0.0).headers() == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "24s",
    }
    refused = rates.admit(scopes, 75, 0.0)
    error = refusal(refused)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.headers["Retry-After"] == "9"
    assert error.headers["retry-after-ms"] == "9000"
    assert error.headers["x-ratelimit-remaining-tokens"] == "60"
    assert error.headers["x-ratelimit-remaining-requests"] == "5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0201, "21ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (7325.4, "2h2m5s"),
        (-1e-12, "0ms"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text


def test_requests_and_tokens_can_be_drawn_one_after_the_other():
    rates = Rates()
    first = rates.admit([("team:a", BOTH)], 0, 0.0)
    then = rates.admit([("team:a", BOTH)], 70, 0.0, requests=0)
    assert first.headers()["x-ratelimit-remaining-requests"] == "5"
    assert then.headers()["x-ratelimit-remaining-requests"] == "5"
    assert then.headers()["x-ratelimit-remaining-tokens"] == "30"
    assert not rates.admit([("team:a", BOTH)], 31, 0.0, requests=0).ok
    assert rates.admit([("team:a", BOTH)], 0, 0.0).ok, "a cache hit needs no tokens"


def test_an_estimate_is_corrected_down_and_up():
    rates = Rates()
    scopes = [("team:a", TOKENS)]
    rates.settle(rates.admit(scopes, 90, 0.0), 10)
    assert rates.admit(scopes, 0, 0.0).reading("tokens_per_minute").remaining == 90
    rates.settle(rates.admit(scopes, 90, 0.0), 140)
    overdrawn = rates.admit(scopes, 10, 0.0)
    assert overdrawn.retry_after_s == pytest.approx(36)
    assert rates.admit(scopes, 0, 0.0).ok


def test_nothing_is_given_back_for_a_minute_that_is_over():
    rates = Rates()
    scopes = [("team:a", TOKENS)]
    long = rates.admit(scopes, 100, 0.0)
    assert rates.admit(scopes, 100, 60.0).ok
    rates.settle(long, 0)
    assert not rates.admit(scopes, 100, 61.0).ok


def test_a_share_of_the_limit_for_each_of_several_gateways():
    rates = Rates(share=0.25)
    scopes = [("team:a", Limits(tokens_per_minute=100))]
    assert rates.admit(scopes, 100, 0.0).ok, "within the whole limit: from a full bucket"
    refused = rates.admit(scopes, 1, 0.0)
    assert refused.retry_after_s == pytest.approx(76 / (25 / 60))
    assert rates.admit(scopes, 101, 1e6).never
    few = [("team:b", Limits(requests_per_minute=1))]
    assert rates.admit(few, 0, 0.0).ok
    assert rates.admit(few, 0, 0.0).retry_after_s == pytest.approx(240)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_is_a_part(share):
    with pytest.raises(ValueError, match="share"):
        Rates(share=share)


def test_the_number_of_remembered_scopes_is_bounded():
    rates = Rates(max_scopes=2)
    for name in ("a", "b", "a", "c"):
        for _ in range(6):
            rates.admit([(f"key:{name}", REQUESTS)], 0, 0.0)
    assert not rates.admit([("key:a", REQUESTS)], 0, 0.0).ok
    assert rates.admit([("key:b", REQUESTS)], 0, 0.0).ok, "forgotten, so it starts full"


def test_a_changed_limit_holds_from_the_next_request_on():
    rates = Rates()
    assert rates.admit([("key:k", Limits(requests_per_minute=60))], 0, 0.0).ok
    lowered = rates.admit([("key:k", Limits(requests_per_minute=2))], 0, 0.0)
    assert lowered.reading("requests_per_minute").remaining == 1


@given(arrivals, st.sampled_from([1.0, 0.5, 0.125]))
def test_no_minute_sees_more_than_the_limit_and_one_full_bucket(arrivals, share):
    rates = Rates(share=share)
    scopes = [("team:a", TOKENS)]
    now, passed = 1000.0, []
    for step, tokens, real in arrivals:
        now += step
        admission = rates.admit(scopes, tokens, now)
        if admission.ok:
            used = min(tokens, real)
            rates.settle(admission, used)
            passed.append((now, used))
    full = max([100 * share, *(used for _, used in passed)])
    for begin, _ in passed:
        within = sum(used for at, used in passed if begin <= at <= begin + 60)
        assert within <= 100 * share + full + 1e-3


@given(arrivals, st.lists(st.integers(0, 59), max_size=60))
def test_late_corrections_do_not_raise_the_rate(arrivals, lateness):
    rates = Rates()
    now, used, owed = 0.0, 0, []
    for number, (step, tokens, real) in enumerate(arrivals):
        now += step
        admission = rates.admit([("team:a", TOKENS)], tokens, now)
        if admission.ok:
            due = number + (lateness[number] if number < len(lateness) else 0)
            owed.append((due, admission, min(tokens, real)))
            used += min(tokens, real)
        for late in [one for one in owed if one[0] <= number]:
            owed.remove(late)
            rates.settle(late[1], late[2])
    assert used <= 100 + now / 60 * 100 + 1e-3


@given(arrivals)
def test_refused_requests_change_nothing_for_the_others(arrivals):
    everything, only_admitted = Rates(), Rates()
    scopes = [("team:a", Limits(tokens_per_minute=150)), ("key:k", BOTH)]
    now = 0.0
    for step, tokens, _ in arrivals:
        now += step
        admission = everything.admit(scopes, tokens, now)
        if admission.ok:
            twin = only_admitted.admit(scopes, tokens, now)
            assert twin.ok
            assert twin.headers() == admission.headers()


@given(st.lists(st.tuples(st.floats(-120, 120, allow_nan=False), st.integers(1, 100)), max_size=60))
def test_a_clock_that_jumps_back_adds_nothing(jumps):
    rates = Rates()
    now = latest = start = 1e5
    passed = 0
    rates.admit([("team:a", TOKENS)], 0, start)
    for jump, tokens in jumps:
        now += jump
        latest = max(latest, now)
        passed += tokens * rates.admit([("team:a", TOKENS)], tokens, now).ok
    assert passed <= 100 + (latest - start) / 60 * 100 + 1e-3


def test_a_clock_that_jumps_back_takes_nothing_either():
    rates = Rates()
    assert rates.admit([("team:a", TOKENS)], 40, 100.0).ok
    assert rates.admit([("team:a", TOKENS)], 60, 10.0).ok
    assert rates.admit([("team:a", TOKENS)], 1, 100.0).retry_after_s == pytest.approx(0.6)


@given(arrivals, st.integers(1, 100))
def test_who_waits_as_told_passes_and_who_comes_sooner_does_not(arrivals, wanted):
    rates = Rates()
    now = 0.0
    for step, tokens, _ in arrivals:
        now += step
        rates.admit([("team:a", BOTH)], tokens, now)
    refused = rates.admit([("team:a", BOTH)], wanted, now)
    if not refused.ok:
        soon = now + refused.retry_after_s * 0.99
        assert not rates.admit([("team:a", BOTH)], wanted, soon).ok
        assert rates.admit([("team:a", BOTH)], wanted, now + refused.retry_after_s).ok

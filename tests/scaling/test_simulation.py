"""The simulator: exact where it can be said by hand, conserving everything, and repeatable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.scaling import Signals, Target
from factory.scaling.clairvoyant import clairvoyant
from factory.scaling.errors import ScalingError
from factory.scaling.fleet import Fleet
from factory.scaling.profile import Profile, Sample, fit
from factory.scaling.serve_default import ServeDefault
from factory.scaling.simulation import (
    Ours,
    Plan,
    Result,
    Slo,
    busy_seconds,
    initial_replicas,
    simulate,
)
from factory.scaling.trace import Trace


def test_a_request_alone_takes_what_its_steps_take(profile: Profile) -> None:
    trace = Trace.of(np.array([0.0, 100.0]), np.array([600, 100]), np.array([11, 1]))
    fleet = Fleet(profile, trace, most=1, seed=0)
    fleet.resize(1, now=0, at_once=True)
    fleet.advance(200)

    # 600 prompt tokens are two steps of 512 and 88, then ten steps of one token each.
    first = 2 * 0.02 + 600 * 0.0005
    assert fleet.first[0] == pytest.approx(first)
    assert fleet.last[0] == pytest.approx(first + 10 * (0.02 + 0.002))
    assert fleet.first[1] == fleet.last[1] == pytest.approx(100 + 0.02 + 100 * 0.0005)


def test_a_batch_shares_its_steps_and_the_next_request_waits_for_a_place(profile: Profile) -> None:
    trace = Trace.of(np.full(9, 0.0), np.full(9, 10), np.full(9, 101))
    fleet = Fleet(profile, trace, most=1, seed=0)
    fleet.resize(1, now=0, at_once=True)
    fleet.advance(20)
    together = 0.02 + 80 * 0.0005 + 100 * (0.02 + 8 * 0.002)

    assert np.sort(fleet.last)[:8] == pytest.approx(together, rel=0.06)
    assert fleet.first.max() >= together * 0.94


@given(rate=st.floats(0.1, 20), replicas=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_everything_that_arrives_is_computed_once(
    rate: float, replicas: int, seed: int, profile: Profile, traffic: Callable[..., Trace]
) -> None:
    trace = traffic(rate, 60, seed)
    if len(trace) == 0:
        return
    fleet = Fleet(profile, trace, most=8, seed=seed)
    fleet.resize(replicas, now=0, at_once=True)
    for second in range(1, 40):
        fleet.advance(second)
        fleet.resize(1 + (second * 7 + seed) % 6, now=second)
    fleet.resize(6, now=40)
    fleet.advance(4000)
    signals: Signals = fleet.signals(4000)

    assert np.isfinite(fleet.last).all()
    assert (fleet.first >= trace.arrivals).all()
    assert (fleet.last >= fleet.first).all()
    assert signals.prompt_tokens_total == trace.prompt.sum()
    assert signals.generation_tokens_total == trace.generated.sum()
    assert (signals.running, signals.waiting, signals.queued) == (0, 0, 0)
    assert signals.busy_s_total <= fleet.replica_seconds(4000)
    least = busy_seconds(trace, profile).sum()
    assert signals.busy_s_total >= least * 0.999


def test_nothing_is_lost_while_no_replica_is_ready(profile: Profile) -> None:
    trace = Trace.of(np.array([0.0, 1.0, 2.0]), np.full(3, 100), np.full(3, 5))
    fleet = Fleet(profile, trace, most=2, seed=0)
    fleet.advance(10)
    assert fleet.queued == 3
    fleet.resize(1, now=10)
    fleet.advance(60)

    assert (fleet.first > 30).all()
    assert (fleet.first < 31).all()
    assert fleet.replica_seconds(60) == pytest.approx(50)


def test_ours_costs_less_than_serves_default_and_more_than_the_clairvoyant(
    profile: Profile, traffic: Callable[..., Trace]
) -> None:
    trace = traffic(lambda t: 12 - 9 * np.cos(2 * np.pi * t / 1200), 2400)
    slo, initial = Slo(ttft_s=2.0), initial_replicas(trace, profile)

    ours = simulate(
        trace, profile, Ours(Target(min_replicas=1, max_replicas=40, ttft_s=2.0, startup_s=60)),
        slo, initial=initial, most=40,
    )  # fmt: skip
    again = simulate(
        trace, profile, Ours(Target(min_replicas=1, max_replicas=40, ttft_s=2.0, startup_s=60)),
        slo, initial=initial, most=40,
    )  # fmt: skip
    default = simulate(
        trace, profile, ServeDefault(target_ongoing_requests=3, min_replicas=1, max_replicas=40),
        slo, initial=initial, most=40,
    )  # fmt: skip
    best = clairvoyant(trace, profile, slo, attainment=0.99, initial=initial, most=40, rounds=15)

    assert ours.summary() == again.summary()
    assert ours.attainment >= 0.99
    assert ours.replica_hours < default.replica_hours or default.attainment < 0.99
    assert best.attained
    assert best.bound_hours < best.result.replica_hours < ours.replica_hours


def test_a_plan_pays_from_the_order_on(profile: Profile) -> None:
    trace = Trace.of(np.array([0.0, 99.0]), np.full(2, 10), np.full(2, 2))
    plan = Plan(np.array([1, 3, 1, 1]), 25.0)

    result = simulate(trace, profile, plan, Slo(ttft_s=1), initial=1, most=4)

    assert result.replica_hours * 3600 == pytest.approx(99 + 2 * 25)
    assert result.usd == pytest.approx(result.replica_hours * 0.5)
    assert result.attainment == 1.0


def test_the_costs_of_a_known_replica_are_found_again(profile: Profile) -> None:
    samples = [
        Sample(
            running=running,
            prompt=prompt,
            generated=64,
            ttft_s=profile.alone_s(prompt),
            inter_token_s=profile.step_s(running=running, prompt_tokens=0, context=0),
        )
        for running in (1, 2, 4, 8)
        for prompt in (64, 256, 448)
    ]

    costs = fit(samples)

    assert costs.per_step_s == pytest.approx(profile.per_step_s, rel=0.01)
    assert costs.per_sequence_s == pytest.approx(profile.per_sequence_s, rel=0.01)
    assert costs.per_prompt_token_s == pytest.approx(profile.per_prompt_token_s, rel=0.01)
    with pytest.raises(ScalingError, match="two batch sizes"):
        fit(samples[:3])


def test_what_happens_outside_of_steps_is_told_from_the_prompt_beside_others(
    profile: Profile,
) -> None:
    slow = profile.model_copy(update={"overhead_s": 0.06})
    decoding = [
        Sample(
            running=running,
            prompt=prompt,
            generated=64,
            ttft_s=0.0,
            inter_token_s=slow.step_s(running=running, prompt_tokens=0, context=0),
        )
        for running in (1, 2, 4, 8)
        for prompt in (64, 256)
    ]
    arriving = [
        Sample(
            running=1,
            prompt=prompt,
            generated=1,
            ttft_s=slow.alone_s(prompt)
            if not beside
            else slow.overhead_s
            + slow.step_s(running=beside, prompt_tokens=0, context=0) / 2
            + slow.step_s(running=beside, prompt_tokens=prompt, context=0),
            inter_token_s=0.0,
            beside=beside,
        )
        for prompt in (64, 256, 448)
        for beside in (0, 2, 6)
    ]

    costs = fit([*decoding, *arriving])

    assert costs.overhead_s == pytest.approx(0.06, rel=0.01)
    assert costs.per_prompt_token_s == pytest.approx(slow.per_prompt_token_s, rel=0.01)


def test_overhead_delays_answers_and_costs_no_replica_time(profile: Profile) -> None:
    trace = Trace.of(np.array([0.0, 5.0]), np.array([64, 64]), np.array([8, 8]))

    def run(overhead: float) -> Result:
        slow = profile.model_copy(update={"overhead_s": overhead})
        plan = Plan(np.array([1]), 1.0)
        return simulate(trace, slow, plan, Slo(ttft_s=1), initial=1, most=1)

    none, some = run(0.0), run(0.25)

    assert some.ttft_p50_s == pytest.approx(none.ttft_p50_s + 0.25)
    assert some.inter_token_p50_s == pytest.approx(none.inter_token_p50_s)
    assert some.replica_hours == none.replica_hours


def test_a_trace_is_read_whatever_its_order_and_clock(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:46.6805900,374,0\n"
    )
    trace = Trace.read(file)

    assert trace.arrivals.tolist() == pytest.approx([0, 4.314579], abs=1e-5)
    assert trace.generated.tolist() == [1, 109]
    ten = trace.scaled(10.5, seed=3)
    assert 20 <= len(ten) <= 22
    assert ten.arrivals.max() <= 4.32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n", "1 requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\nx,2,3\n", "line 3: TIMESTAMP 'x'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,-2,3\n", "line 3: '-2' is not"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,2\n", "line 3"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)

    with pytest.raises(ScalingError, match=message):
        Trace.read(file)
    with pytest.raises(ScalingError, match="cannot read"):
        Trace.read(tmp_path / "none.csv")


def test_a_bad_profile_is_refused_with_its_field(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    text = Profile.packaged().model_dump_json()
    file.write_text(text.replace('"max_batch":', '"max_bach":'))

    with pytest.raises(ScalingError, match="max_ba"):
        Profile.read(file)

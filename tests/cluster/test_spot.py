from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spot import MAIN, case, groups, read, summary
from benchmarks.spot_references import (
    IDLE,
    Setting,
    greedy,
    omniscient,
    on_demand,
    run,
    uniform_progress,
)
from factory.cluster.spot.availability import STATES, UP, Watch, learn
from factory.cluster.spot.policy import ONDEMAND, Job, Outlook, Situation

TICK = 300.0


def flapping(ticks: int, stay_up: float, stay_down: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).random(ticks)
    bits = np.zeros(ticks, np.int8)
    for now in range(1, ticks):
        stays = stay_up if bits[now - 1] else stay_down
        bits[now] = bits[now - 1] if draw[now] < stays else 1 - bits[now - 1]
    return bits


def watch_of(*series: np.ndarray) -> Watch:
    names = [f"z{number}" for number in range(len(series))]
    return Watch(TICK, 0, dict(zip(names, series, strict=True)), dict.fromkeys(names, "r"))


@cache
def past(zones: int) -> Outlook:
    series = [flapping(1500, 0.9, 0.9, seed) for seed in range(zones)]
    watch = watch_of(*series)
    return Outlook.of(watch, list(watch.up))


@given(
    bits=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=70, max_size=70),
    work_s=st.integers(600, 12_000),
    overhead_s=st.sampled_from([0, 100, 300, 1000, 2500]),
    slack_s=st.integers(0, 5000),
    zones=st.sampled_from([1, 2]),
)
@settings(max_examples=60, deadline=None)
def test_a_feasible_deadline_is_never_missed(
    bits: list[tuple[bool, bool]], work_s: int, overhead_s: int, slack_s: int, zones: int
) -> None:
    ticks = int((work_s + overhead_s + slack_s) // TICK) + 1
    outlook = past(zones)
    now_on = np.array(bits, dtype=np.int8).T[:zones]
    watch = watch_of(
        *(np.concatenate([outlook.watch.up[f"z{zone}"], now_on[zone]]) for zone in range(zones))
    )
    job = Job(work_s=work_s, overhead_s=overhead_s, time_s=ticks * TICK, price_ratio=3)
    planned = outlook.plan(job)
    states = planned.states(watch)
    left, held, coming = float(work_s), None, 0.0
    for tick in range(ticks):
        now = planned.at(outlook.watch.ticks + tick, states)
        held = held if held in {*now.life, ONDEMAND} else None
        where = Situation(
            time_left_s=(ticks - tick) * TICK,
            work_left_s=left,
            held=held,
            overhead_left_s=coming,
        )
        choice = planned.decide(where, now)
        assert choice.reasons
        assert choice.hold in {None, ONDEMAND, *now.life}
        if choice.hold != held:
            held, coming = choice.hold, float(overhead_s)
        if held is not None:
            left -= TICK - min(coming, TICK)
            coming -= min(coming, TICK)
        if left <= 0:
            return
    pytest.fail(f"{left:.0f} s of work were left at the deadline")


@st.composite
def little(draw: st.DrawFn) -> Setting:
    ticks = draw(st.integers(4, 7))
    zones = draw(st.integers(1, 2))
    bits = draw(st.lists(st.integers(0, 1), min_size=ticks * zones, max_size=ticks * zones))
    overhead = draw(st.integers(0, 4))
    work = draw(st.integers(1, 3 * ticks - overhead))
    return Setting(np.array(bits, np.int8).reshape(zones, ticks), 3, work, overhead, 3.0)


def cheapest(setting: Setting) -> float:
    """Every schedule there is, tried."""
    best = np.inf
    stack = [(0, setting.work, IDLE, 0, 0.0)]
    while stack:
        now, work, held, coming, cost = stack.pop()
        if now == setting.ticks:
            continue
        for hold in range(IDLE, setting.on_demand + 1):
            if 0 <= hold < setting.on_demand and not setting.up[hold, now]:
                continue
            if hold == IDLE:
                stack.append((now + 1, work, IDLE, 0, cost))
                continue
            start = coming if hold == held else setting.overhead
            used = min(start, setting.tick)
            price = setting.ratio if hold == setting.on_demand else 1.0
            if setting.tick - used >= work:
                best = min(best, cost + price * (used + work))
            else:
                rest = work - setting.tick + used
                stack.append((now + 1, rest, hold, start - used, cost + price * setting.tick))
    return float(best)


@given(little())
@settings(max_examples=60, deadline=None)
def test_the_omniscient_cost_is_that_of_the_best_of_all_schedules(setting: Setting) -> None:
    assert omniscient(setting) == pytest.approx(cheapest(setting))


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.7]))
@settings(max_examples=25, deadline=None)
def test_the_references_meet_deadlines_and_cost_no_less_than_the_optimum(
    seed: int, slack: float
) -> None:
    work, overhead, tick = 60 * 13, 48, 13
    ticks = int(work * (1 + slack) / tick) + 4
    up = np.stack([flapping(ticks, 0.9, 0.9, seed), flapping(ticks, 0.95, 0.8, seed + 1)])
    setting = Setting(up, tick, work, overhead, 3.0)
    best = omniscient(setting)
    for policy in (greedy(setting, [1, 0]), uniform_progress(setting, [1, 0]), on_demand(setting)):
        played = run(setting, policy)
        assert not played.missed
        assert played.cost >= best - 1e-6


def test_the_chances_add_up_and_follow_what_was_seen() -> None:
    watch = watch_of(flapping(4000, 0.98, 0.9, 1), flapping(4000, 0.8, 0.98, 2))
    good, bad = learn(watch, ["z0"]), learn(watch, ["z1"])
    for forecast in (good, bad):
        assert forecast.transitions.sum(axis=2) == pytest.approx(1)
        assert forecast.transitions.min() >= 0
    hours = watch.hours(0, 100)
    assert good.life(hours)[0][UP].min() > bad.life(hours)[0][UP].max()
    assert good.life(hours)[0][~UP].max() == 0
    assert good.transitions.shape == (24, STATES, STATES)


def test_the_time_of_day_is_learned() -> None:
    hours = (np.arange(288 * 20) * TICK / 3600) % 24
    nightly = ((hours >= 20) | (hours < 8)).astype(np.int8)
    forecast = learn(watch_of(nightly), ["z0"])
    watch = watch_of(nightly)
    at = watch.hours(0, 288)
    typical = forecast.life(at)
    evening, morning = typical[at == 21][0][UP].mean(), typical[at == 7][0][UP].mean()
    assert evening > morning


def test_on_zones_that_come_and_go_it_is_cheaper_than_the_references() -> None:
    series = [flapping(6000, 0.97, 0.97, 11), flapping(6000, 0.9, 0.97, 12)]
    watch = watch_of(*series)
    rows = [
        row
        for at in range(3000, 5400, 400)
        for row in case(watch, "both", ["z0", "z1"], at, MAIN, [0.25])
    ]
    found = summary(rows)
    assert found["factory"]["missed_deadlines"] == 0
    assert found["gap_closed"] > 0.2


def test_a_longer_job_is_planned_in_coarser_ticks() -> None:
    outlook = past(1)
    planned = outlook.plan(
        Job(work_s=400_000, overhead_s=7200, time_s=600_000, price_ratio=3),
    )
    assert planned.step > 1
    states = planned.states(outlook.watch)
    now = planned.at(outlook.watch.ticks - 1, states)
    assert 0 < planned.expected_cost(now.state) <= 1.05
    where = Situation(time_left_s=600_000, work_left_s=400_000, held=None, overhead_left_s=0)
    assert planned.decide(where, now).reasons


def test_what_cannot_be_met_is_run_at_once_on_demand_and_said() -> None:
    planned = past(1).plan(Job(work_s=3600, overhead_s=300, time_s=3000, price_ratio=3))
    assert not planned.job.feasible
    now = planned.at(planned.first, planned.states(past(1).watch))
    where = Situation(time_left_s=3000, work_left_s=3600, held=None, overhead_left_s=0)
    choice = planned.decide(where, now)
    assert choice.hold == ONDEMAND
    assert "cannot be met" in choice.reasons[0]


def test_unknown_zones_and_empty_watches_are_refused() -> None:
    with pytest.raises(ValueError, match="has not been watched; known: z0"):
        Outlook.of(watch_of(flapping(10, 0.9, 0.9, 1)), ["z9"])
    with pytest.raises(ValueError, match="equally many"):
        watch_of(flapping(10, 0.9, 0.9, 1), flapping(9, 0.9, 0.9, 1))
    with pytest.raises(ValueError, match="nothing has been seen"):
        watch_of(np.zeros(0, np.int8))


def test_traces_are_read_by_their_zones_and_bad_ones_named(tmp_path: Path) -> None:
    good = '{"metadata": {"gap_seconds": 60}, "data": [1, 0, 1]}'
    for name in ("us-east-1a_v100_1", "us-east-1c_v100_1", "europe-west4-b_x"):
        (tmp_path / f"{name}.json").write_text(good)
    watch = read(tmp_path)
    assert set(watch.regions.values()) == {"us-east-1", "europe-west4"}
    assert set(groups(watch)) == {"us-east-1", "all"}
    (tmp_path / "bad.json").write_text('{"metadata": {"gap_seconds": 60}, "data": [1, 2]}')
    with pytest.raises(SystemExit, match=r"bad\.json: data must be 0 or 1"):
        read(tmp_path)
    with pytest.raises(SystemExit, match="holds no traces"):
        read(tmp_path / "nowhere")

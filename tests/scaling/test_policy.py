"""The policy on a fluid deployment: floors, waking, sleeping, growing, shrinking, its reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory import config
from factory.scaling import Decision, Signals, State, Target, decide, of_model

STEP, PROMPT, TOKEN, BATCH = 0.03, 0.0005, 0.001, 32
"""What the deployment below really costs."""


class Fluid:
    """A deployment that serves what arrives at once, as far as its replicas can."""

    def __init__(self, target: Target, startup_s: float = 20.0) -> None:
        self.target, self.startup_s = target, startup_s
        self.now, self.ready, self.coming = 0.0, target.min_replicas, list[float]()
        self.arrived = self.prompt = self.generated = self.steps = self.busy = self.queued = 0.0
        self.state = State()
        self.last: Decision | None = None

    def run(self, seconds: float, rate: float, prompt: float = 500, generated: float = 100) -> int:
        """Go on for `seconds` with `rate` requests a second; the replicas at the end."""
        cost = STEP * generated / BATCH + PROMPT * prompt + TOKEN * generated
        for _ in range(int(seconds)):
            self.now += 1
            self.ready += sum(when <= self.now for when in self.coming)
            self.coming = [when for when in self.coming if when > self.now]
            self.arrived += rate
            done = min(rate + self.queued, self.ready / cost)
            self.queued += rate - done
            self.prompt += done * prompt
            self.generated += done * generated
            self.steps += done * generated / BATCH
            self.busy += done * cost
            signals = Signals(
                now=self.now,
                ready=self.ready,
                starting=len(self.coming),
                queued=self.queued,
                running=min(self.ready * BATCH, done * 3),
                max_batch=BATCH,
                arrived_total=self.arrived,
                prompt_tokens_total=self.prompt,
                generation_tokens_total=self.generated,
                steps_total=self.steps,
                busy_s_total=self.busy,
            )
            self.last = decide(signals, self.state, self.target)
            plain = json.loads(json.dumps(self.last.state.to_plain()))
            self.state = State.from_plain(plain)
            held = self.ready + len(self.coming)
            if self.last.replicas > held:
                self.coming += [self.now + self.startup_s] * (self.last.replicas - held)
            while self.last.replicas < self.ready + len(self.coming):
                if self.coming:
                    self.coming.pop()
                else:
                    self.ready -= 1
        return self.ready + len(self.coming)


def test_production_keeps_its_floor_and_batch_sleeps_and_wakes() -> None:
    production = Fluid(Target(min_replicas=2, max_replicas=9, idle_after_s=60))
    assert production.run(300, rate=0) == 2
    batch = Fluid(Target(max_replicas=9, idle_after_s=60))
    assert batch.run(30, rate=0) == 0
    assert batch.run(1, rate=1) == 1
    assert batch.last is not None
    assert "sleeps" in batch.last.reasons[0]
    assert batch.run(200, rate=0.1) >= 1
    assert batch.run(50, rate=0) >= 1
    assert batch.run(60, rate=0) == 0


def test_what_serve_has_woken_by_itself_is_not_put_to_sleep_again() -> None:
    target = Target(max_replicas=3, idle_after_s=60)
    asleep = decide(Signals(now=0, ready=0), State(), target)
    assert asleep.replicas == 0

    woken = Signals(now=0.3, ready=0, starting=1, queued=1, arrived_total=1)
    starting = decide(woken, asleep.state, target)
    answered = Signals(now=2.0, ready=1, arrived_total=1)
    waiting_for_more = decide(answered, starting.state, target)

    assert starting.replicas == waiting_for_more.replicas == 1


def test_it_learns_what_a_replica_sustains_and_follows_the_load_both_ways() -> None:
    fluid = Fluid(Target(min_replicas=1, max_replicas=100, startup_s=60))
    cost = STEP * 100 / BATCH + PROMPT * 500 + TOKEN * 100

    for rate in (10, 60, 10):
        replicas = fluid.run(900, rate=rate)
        assert rate * cost < replicas < 1.4 * rate * cost + 2
    assert fluid.queued == 0
    assert fluid.state.startup_s == pytest.approx(20, abs=6)


def test_a_longer_prompt_mix_needs_more_replicas_for_the_same_rate() -> None:
    fluid = Fluid(Target(min_replicas=1, max_replicas=100))
    short = fluid.run(900, rate=20, prompt=200)

    assert fluid.run(900, rate=20, prompt=2000) > 2 * short


def test_bounds_hold_and_are_among_the_reasons() -> None:
    fluid = Fluid(Target(min_replicas=1, max_replicas=3))

    assert fluid.run(300, rate=50) == 3
    assert fluid.last is not None
    while not fluid.last.reasons:
        fluid.run(1, rate=50)
    assert "max_replicas allows 3" in fluid.last.reasons[-1]
    with pytest.raises(ValueError, match="between 0 and max_replicas"):
        Target(min_replicas=4, max_replicas=3)


def test_a_model_takes_the_strictest_target_of_the_endpoints_it_answers() -> None:
    settings = config.parse(config.default_text(), "default", Path(), {})

    target = of_model(settings, "smollm2-135m")

    assert (target.min_replicas, target.max_replicas, target.ttft_s) == (1, 1, 0.8)
    assert of_model(settings, "minilm").min_replicas == 0

"""The fewest replica-hours that somebody who knows the future needs for the same attainment.

    best = clairvoyant(trace, profile, slo, attainment=0.99, initial=3, most=64)
    best.result.replica_hours, best.bound_hours

A plan of held replicas, one number a period, is searched with the simulator itself: it pays for
start-up like everybody else, only it orders before the load is there. The search begins with the
known work of each period, smoothed and raised by the smallest factor that attains the target (by
bisection). It then takes replicas away wherever nobody is late, as long as the plan still attains
it. What it finds can be done, so the true optimum is at most this; `bound_hours` is the work at
full batches, which nobody can go below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from factory.scaling.profile import Profile
from factory.scaling.simulation import Plan, Result, Slo, busy_seconds, simulate
from factory.scaling.trace import Trace

PERIOD_S = 15.0
"""Seconds of a period of the plan."""
WIDTHS = (1, 3, 7)
"""Periods over which the known work is averaged; each is tried."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Best:
    """What was found."""

    result: Result
    """The best plan, simulated."""
    plan: NDArray[np.int64]
    """Replicas held by period."""
    bound_hours: float
    """Replica-hours of the work alone, every batch full."""
    attained: bool
    """Whether any plan within `most` replicas attains the target."""
    simulations: int
    """Plans that were tried."""


def clairvoyant(
    trace: Trace,
    profile: Profile,
    slo: Slo,
    *,
    attainment: float,
    initial: int,
    most: int,
    rounds: int = 40,
    widths: Sequence[int] = WIDTHS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Best:
    """Search for the cheapest plan that attains the target; `rounds` bounds the last part.

    `widths` are the smoothings that the first part tries, in odd numbers of periods.
    """
    say = progress or (lambda _: None)
    work = busy_seconds(trace, profile)
    periods = ceil((trace.seconds + 1e-9) / PERIOD_S)
    index = np.minimum((trace.arrivals / PERIOD_S).astype(np.int64), periods - 1)
    offered = np.bincount(index, weights=work, minlength=periods) / PERIOD_S
    lead = ceil(profile.startup_s / PERIOD_S)
    tried = 0

    def run(plan: NDArray[np.int64]) -> Result:
        nonlocal tried
        tried += 1
        return simulate(
            trace, profile, Plan(plan, PERIOD_S), slo,
            initial=max(int(plan[0]), 1), most=most, seed=seed,
        )  # fmt: skip

    best: tuple[Result, NDArray[np.int64]] | None = None
    for width in widths:
        padded = np.pad(offered, width // 2, mode="edge")
        smooth = np.lib.stride_tricks.sliding_window_view(padded, width).mean(axis=1)
        low, high = 0.9, 2.5
        for _ in range(7):
            factor = (low + high) / 2
            plan = _held(smooth * factor, lead, most)
            result = run(plan)
            say(f"factor {factor:.2f} over {width} periods: {result.attainment:.4f}")
            if result.attainment >= attainment:
                high = factor
                if best is None or result.replica_hours < best[0].replica_hours:
                    best = (result, plan)
            else:
                low = factor
    if best is None:
        plan = np.full(periods, most, dtype=np.int64)
        best = (run(plan), plan)
    attained = best[0].attainment >= attainment
    best = _trim(best, run, index, attainment, rounds, np.random.default_rng(seed), say)
    return Best(
        result=best[0],
        plan=best[1],
        bound_hours=float(work.sum()) / 3600,
        attained=attained,
        simulations=tried,
    )


def _held(needed: NDArray[np.float64], lead: int, most: int) -> NDArray[np.int64]:
    """Replicas to hold so that `needed` are ready: those ordered `lead` periods ahead included."""
    whole = np.clip(np.ceil(needed - 1e-9), 1, most).astype(np.int64)
    padded = np.pad(whole, (0, lead), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, lead + 1)
    held: NDArray[np.int64] = windows.max(axis=1)
    return held


def _trim(
    best: tuple[Result, NDArray[np.int64]],
    run: Callable[[NDArray[np.int64]], Result],
    index: NDArray[np.int64],
    attainment: float,
    rounds: int,
    random: np.random.Generator,
    say: Callable[[str], None],
) -> tuple[Result, NDArray[np.int64]]:
    """Take replicas away, most where it hurts least, while the plan attains the target."""
    result, plan = best
    if result.attainment < attainment:
        return best
    share, step = 0.5, 0.04
    for turn in range(rounds):
        late = np.bincount(index, weights=~result.met, minlength=plan.size)
        around = np.lib.stride_tricks.sliding_window_view(np.pad(late, 2, mode="edge"), 5)
        quiet = np.argsort(around.sum(axis=1) + random.random(plan.size), kind="stable")
        chosen = quiet[: max(1, int(share * plan.size))]
        chosen = chosen[random.random(chosen.size) < 0.7]
        trial = plan.copy()
        trial[chosen] -= np.maximum(1, np.round(trial[chosen] * step)).astype(np.int64)
        trial = np.maximum(trial, 1)
        if (trial == plan).all():
            continue
        outcome = run(trial)
        if outcome.attainment >= attainment and outcome.replica_hours < result.replica_hours:
            result, plan = outcome, trial
            share = min(0.9, share * 1.15)
            say(f"trim {turn + 1}: {outcome.replica_hours:.2f} h, {outcome.attainment:.4f}")
        else:
            share, step = max(0.01, share * 0.7), max(0.005, step * 0.8)
    return result, plan

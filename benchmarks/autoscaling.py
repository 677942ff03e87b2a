"""Autoscaling: replica-hours for the same attainment, ours beside Ray Serve's default and a seer.

    python -m benchmarks.autoscaling --trace FILE.csv [--scales 1,10,100] [--target-ttft-ms N]
                                     [--profile FILE.json] [--attainment 0.99] [--seed N]

The trace (`TIMESTAMP,ContextTokens,GeneratedTokens`) is replayed against simulated replicas of the
profile, by default the measured one of SmolLM2 on 2 cores. A scale above 1 repeats every arrival
with up to 15 s of jitter, one below 1 chooses among them. The latency target is, unless given,
three times what the 99th percentile of the prompts takes on an idle replica.

`ray_default` is Serve's own policy code with its default delays, its `target_ongoing_requests`
chosen by grid on this very trace: the fewest replica-hours that attain `--attainment`, else the
best attainment. `factory` starts without knowing the trace, the profile or the real start-up time.
Where the reference attains more, ours is told a higher objective until it attains as much; with the
first one it stands under `factory_at_first_objective`. `clairvoyant` plans with the whole trace
known for what `factory` attained. Everybody starts with the same replicas, faces the same router
and start-up time, and pays from a replica's order to the end of its last answer. The figures of the
first scale stand at the top level, all of them under `scales`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from factory.scaling.clairvoyant import clairvoyant
from factory.scaling.errors import ScalingError
from factory.scaling.profile import Profile
from factory.scaling.serve_default import ServeDefault, request_targets, tuned
from factory.scaling.simulation import (
    Ours,
    Result,
    Slo,
    enough_replicas,
    initial_replicas,
    simulate,
    usual_target_s,
)
from factory.scaling.target import Target
from factory.scaling.trace import Trace

MANY = 1_000_000
"""Requests from which grids are coarse and searches short, to end within minutes."""
GUESSED_STARTUP_S = 60.0
"""What ours is told of the start-up time; the real one it must learn."""


def run(
    trace: Trace, profile: Profile, *, ttft_s: float, attainment: float, seed: int
) -> dict[str, Any]:
    """All three on one trace."""
    slo, initial = Slo(ttft_s=ttft_s), initial_replicas(trace, profile)
    most = enough_replicas(trace, profile)
    target = Target(
        min_replicas=1,
        max_replicas=most,
        ttft_s=ttft_s,
        attainment=attainment,
        startup_s=GUESSED_STARTUP_S,
    )

    def ours(objective: float) -> Result:
        policy = Ours(replace(target, attainment=objective))
        return simulate(trace, profile, policy, slo, initial=initial, most=most, seed=seed)

    def default(wanted: float) -> Result:
        policy = ServeDefault(target_ongoing_requests=wanted, min_replicas=1, max_replicas=most)
        result = simulate(trace, profile, policy, slo, initial=initial, most=most, seed=seed)
        _say(f"  ray_default at {wanted:g} requests a replica: {_line(result)}")
        return result

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        first = pool.submit(ours, attainment)
        targets = request_targets(profile.max_ongoing)
        # A long trace is asked for every third first, then around the best of those.
        wanted = request_targets(profile.max_ongoing, coarse=len(trace) >= MANY)
        tried = dict(zip(wanted, pool.map(default, wanted), strict=True))
        around = targets.index(tuned(tried, attainment))
        wanted = [one for one in targets[max(0, around - 2) : around + 3] if one not in tried]
        tried |= dict(zip(wanted, pool.map(default, wanted), strict=True))
    chosen = tuned(tried, attainment)
    reference = tried[chosen]
    as_told = first.result()
    _say(f"  factory, told {attainment:.2%}: {_line(as_told)}")
    objective, factory = attain(ours, attainment, as_told, reference.attainment, halvings=3)
    best = clairvoyant(
        trace, profile, slo,
        attainment=factory.attainment, initial=initial, most=most, seed=seed,
        rounds=60 if len(trace) < 100_000 else 25 if len(trace) < MANY else 4,
        widths=(1, 3, 7) if len(trace) < MANY else (3,),
    )  # fmt: skip
    _say(f"  clairvoyant: {_line(best.result)}, {best.simulations} plans tried")
    return {
        "factory": _figures(factory) | {"objective": round(objective, 6)},
        "ray_default": _figures(reference) | {"target_ongoing_requests": chosen},
        "clairvoyant": _figures(best.result) | {"work_bound_hours": round(best.bound_hours, 3)},
        "factory_at_first_objective": _figures(as_told) | {"objective": attainment},
        "ratio_to_default": round(factory.replica_hours / reference.replica_hours, 4),
        "ratio_to_clairvoyant": round(factory.replica_hours / best.result.replica_hours, 4),
        "equal_or_better": factory.attainment >= reference.attainment,
        "requests": len(trace),
        "target_ttft_ms": round(1000 * ttft_s),
    }


def attain(
    ours: Callable[[float], Result], objective: float, first: Result, wanted: float, halvings: int
) -> tuple[float, Result]:
    """The objective that ours must be told to attain `wanted`, and what it does then.

    `first` is what it did with `objective`. The last step up is halved so often again.
    """
    below, told, found = objective, objective, first

    def ask(one: float) -> Result:
        result = ours(one)
        _say(f"  factory, told {one:.3%}: {_line(result)}")
        return result

    while found.attainment < wanted and told < 0.9999:
        below, told = told, 1 - (1 - told) * 0.8
        found = ask(told)
    for _ in range(halvings if below < told else 0):
        middle = (below + told) / 2
        result = ask(middle)
        if result.attainment < wanted:
            below = middle
        else:
            told = middle
            found = min(found, result, key=lambda one: one.replica_hours)
    return told, found


def _figures(result: Result) -> dict[str, Any]:
    return result.summary() | {"replica_hours": round(result.replica_hours, 3)}


def _line(result: Result) -> str:
    return (
        f"{result.replica_hours:.2f} replica-hours, {result.attainment:.2%} in time, "
        f"p95 {result.ttft_p95_s:.1f} s"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _scales(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(text)
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscaling",
        description="Replica-hours of our policy, Ray Serve's default and a clairvoyant.",
        epilog="Example: python -m benchmarks.autoscaling --trace azure_llm_2023_conv.csv",
    )
    parser.add_argument("--trace", type=Path, required=True, help="CSV of requests")
    parser.add_argument("--scales", type=_scales, default=[1, 10, 100], help="default: 1,10,100")
    parser.add_argument("--profile", type=Path, help="a replica's profile, of `factory profile`")
    parser.add_argument("--target-ttft-ms", type=float, help="latency target")
    parser.add_argument("--attainment", type=float, default=0.99, help="wanted share in time")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if not 0.5 <= chosen.attainment < 1 or (chosen.target_ttft_ms or 1) <= 0:
        parser.error("--attainment lies between 0.5 and 1, --target-ttft-ms above 0")
    try:
        trace = Trace.read(chosen.trace)
        profile = Profile.read(chosen.profile) if chosen.profile else Profile.packaged()
        ttft_s = (chosen.target_ttft_ms or 1000 * usual_target_s(trace, profile)) / 1000
        scales = {}
        for scale in chosen.scales:
            _say(f"scale {scale:g}: {len(trace) * scale:,.0f} requests, target {ttft_s:.1f} s")
            scales[f"{scale:g}"] = run(
                trace.scaled(scale, seed=chosen.seed),
                profile,
                ttft_s=ttft_s,
                attainment=chosen.attainment,
                seed=chosen.seed,
            )
    except ScalingError as error:
        sys.exit(f"autoscaling: {error}")
    first = next(iter(scales.values()))
    print(json.dumps(first | {"profile": profile.model, "scales": scales}))


if __name__ == "__main__":
    main()

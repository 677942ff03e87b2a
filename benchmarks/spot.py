"""Spot: what a job with a deadline costs on real availability, beside what others would have paid.

    python -m benchmarks.spot --traces DIR [--deadline-slack F ...] [--starts N] [--quick]

A trace is a JSON file `{"metadata": {"gap_seconds": S}, "data": [1, 0, …]}`: whether one spot
node could be had in that tick; its name begins with the zone. Each job runs at `--starts` moments
of each trace, on one zone alone, on the zones of each region together, and on all of them.

The platform watches all zones all the time, so the policy may learn from all ticks *before* the job
began and sees which neighbours of the same region are up at this moment; nothing is fitted to these
files. The references know of the past what they can use: with several zones they take the one that
was most often up so far.

Costs are those of `factory.cluster.spot.policy` and, in the same run, of greedy, Uniform Progress,
on-demand and the omniscient optimum, relative to all on-demand. `gap_closed` is the part of the way
from the better of greedy and Uniform Progress (by mean cost at that slack) to the optimum.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.spot_references import (
    Policy,
    Run,
    Setting,
    greedy,
    omniscient,
    on_demand,
    run,
    uniform_progress,
)
from factory.cluster.spot.availability import Watch
from factory.cluster.spot.policy import ONDEMAND, Job, Outlook, Situation

SLACKS = (0.11, 0.25, 0.43, 0.67)
POLICIES = ("factory", "uniform_progress", "greedy", "on_demand", "omniscient")


@dataclass(frozen=True)
class Kind:
    """A kind of job; hours."""

    work_h: float
    overhead_h: float
    ratio: float


MAIN = Kind(24, 0.2, 3)
OTHERS = (Kind(24, 0.05, 3), Kind(24, 0.5, 3), Kind(8, 0.2, 3), Kind(48, 0.2, 3), Kind(24, 0.2, 2))
"""Other jobs, run at fewer moments."""


def read(folder: Path) -> Watch:
    """All traces of a folder as one watch; zones of different length are cut to the shortest.

    Raises `SystemExit` with a sentence for a folder or file that cannot be used.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise SystemExit(f"{folder} holds no traces; give --traces a folder of availability files")
    up, gaps = {}, set()
    for file in files:
        try:
            raw = json.loads(file.read_text("utf-8"))
            gap = float(raw["metadata"]["gap_seconds"])
            bits = np.asarray(raw["data"], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{file} is not an availability trace: {error!r}") from error
        if bits.ndim != 1 or not np.isin(bits, (0, 1)).all() or gap <= 0 or gap != int(gap):
            raise SystemExit(f"{file}: data must be 0 or 1 a tick, gap_seconds a whole number")
        gaps.add(gap)
        up[file.stem] = bits.astype(np.int8)
    if len(gaps) > 1:
        raise SystemExit(f"the traces of {folder} have different gap_seconds: {sorted(gaps)}")
    ticks = min(len(bits) for bits in up.values())
    # A zone's name is its region's and a letter: us-east-1a, europe-west4-b.
    regions = {
        zone: match[1] if (match := re.match(r"([a-z]+-[a-z]+-?\d+)-?[a-z]\b", zone)) else zone
        for zone in (re.sub(r"_.*", "", name) for name in up)
    }
    names = {name: re.sub(r"_.*", "", name) for name in up}
    return Watch(
        gaps.pop(),
        0.0,
        {zone: bits[:ticks] for zone, bits in up.items()},
        {zone: regions[names[zone]] for zone in up},
    )


def groups(watch: Watch) -> dict[str, list[str]]:
    """Sets of zones to run on: the regions that have several, and all together."""
    found = defaultdict(list)
    for zone, region in watch.regions.items():
        found[region].append(zone)
    several = {region: zones for region, zones in found.items() if len(zones) > 1}
    if len(watch.up) > 1 and len(watch.up) not in map(len, several.values()):
        several["all"] = list(watch.up)
    return several


def ours(setting: Setting, planned: Any, states: Any, zones: Sequence[str], at: int) -> Policy:
    """`factory.cluster.spot.policy` as a policy of the references' simulator."""
    unit = planned.tick_s / setting.tick

    def policy(now: int, work: int, held: int, coming: int) -> int:
        names = [None, *zones, ONDEMAND]
        where = Situation(
            time_left_s=(setting.ticks - now) * planned.tick_s,
            work_left_s=work * unit,
            held=names[held + 1],
            overhead_left_s=coming * unit,
        )
        hold = planned.decide(where, planned.at(at + now, states)).hold
        return names.index(hold) - 1

    return policy


def case(
    watch: Watch, name: str, zones: list[str], at: int, kind: Kind, slacks: Sequence[float]
) -> list[dict[str, Any]]:
    """Every policy on one job at one moment, at every slack."""
    tick_s = watch.tick_s
    work_s, overhead_s = round(kind.work_h * 3600), round(kind.overhead_h * 3600)
    unit = math.gcd(int(tick_s), work_s, overhead_s)
    outlook = Outlook.of(watch.until(at + 1), zones)
    bits = np.stack([watch.up[zone] for zone in zones])
    rank = list(np.argsort(-bits[:, : at + 1].mean(axis=1), kind="stable"))
    rows = []
    states = None
    for slack in slacks:
        ticks = int(work_s * (1 + slack) / tick_s)
        setting = Setting(
            bits[:, at : at + ticks],
            int(tick_s) // unit,
            work_s // unit,
            overhead_s // unit,
            kind.ratio,
        )
        job = Job(
            work_s=work_s,
            overhead_s=overhead_s,
            time_s=ticks * tick_s,
            price_ratio=kind.ratio,
        )
        planned = outlook.plan(job)
        if states is None or planned.step != states[0]:
            states = (planned.step, planned.states(watch.until(at + int(ticks * 2) + 1)))
        played: dict[str, Run] = {
            "factory": run(setting, ours(setting, planned, states[1], zones, at)),
            "greedy": run(setting, greedy(setting, rank)),
            "uniform_progress": run(setting, uniform_progress(setting, rank)),
            "on_demand": run(setting, on_demand(setting)),
        }
        best = omniscient(setting)
        played["omniscient"] = Run(best, math.isinf(best), 0)
        alone = kind.ratio * (setting.work + setting.overhead)
        rows.append(
            {
                "where": name,
                "several": len(zones) > 1,
                "kind": kind,
                "slack": slack,
                "cost": {policy: each.cost / alone for policy, each in played.items()},
                "missed": {policy: int(each.missed) for policy, each in played.items()},
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean cost and misses by policy, and the gap closed."""
    found: dict[str, Any] = {
        policy: {
            "cost": round(float(np.mean([row["cost"][policy] for row in rows])), 4),
            "missed_deadlines": sum(row["missed"][policy] for row in rows),
        }
        for policy in POLICIES
    }
    mean = {policy: float(np.mean([row["cost"][policy] for row in rows])) for policy in POLICIES}
    better = min(mean["greedy"], mean["uniform_progress"])
    gap = better - mean["omniscient"]
    found["gap_closed"] = round((better - mean["factory"]) / gap, 3) if gap > 1e-9 else None
    return found | {"jobs": len(rows)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spot", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--traces", type=Path, required=True, help="folder of availability traces")
    parser.add_argument(
        "--deadline-slack",
        type=float,
        nargs="+",
        default=list(SLACKS),
        help="time to the deadline beyond the work, as a part of the work",
    )
    parser.add_argument("--starts", type=int, default=10, help="moments a trace is started at")
    parser.add_argument("--quick", action="store_true", help="the main kind of job only")
    args = parser.parse_args(argv)
    slacks = sorted(set(args.deadline_slack))
    if slacks[0] < 0.05 or slacks[-1] > 10 or args.starts < 1:
        parser.error("--deadline-slack must lie between 0.05 and 10, --starts be at least 1")
    watch = read(args.traces)
    begun = time.monotonic()
    work: list[tuple[str, list[str], int, Kind]] = []
    kinds = (MAIN,) if args.quick else (MAIN, *OTHERS)
    places = {zone: [zone] for zone in watch.up} | groups(watch)
    for kind in kinds:
        horizon = int(kind.work_h * 3600 * (1 + slacks[-1]) / watch.tick_s) + 2
        first, last = watch.ticks // 6, watch.ticks - horizon
        if last <= first:
            print(f"too short for {kind.work_h:g} h of work: left out", file=sys.stderr)
            continue
        starts = args.starts if kind == MAIN else max(1, args.starts // 5)
        moments = np.linspace(first, last, starts, dtype=int)
        work += [(name, zones, int(at), kind) for name, zones in places.items() for at in moments]
    if not work:
        raise SystemExit(f"the traces of {args.traces} are too short for a job of {MAIN.work_h} h")
    rows: list[dict[str, Any]] = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(case, watch, *each, slacks) for each in work]
        for done, each in enumerate(jobs, 1):
            rows += each.result()
            if done % 20 == 0 or done == len(jobs):
                spent = time.monotonic() - begun
                print(f"{done} of {len(jobs)} cases, {spent:.0f} s", file=sys.stderr, flush=True)
    report(rows, slacks)


def report(rows: list[dict[str, Any]], slacks: Sequence[float]) -> None:
    """Tables on standard error, the last line on standard output."""
    head = f"{'':34}" + "".join(f"{policy:>17}" for policy in POLICIES) + f"{'gap closed':>12}"
    print(head, file=sys.stderr)

    def line(title: str, some: list[dict[str, Any]]) -> dict[str, Any]:
        found = summary(some)
        costs = "".join(f"{found[policy]['cost']:17.3f}" for policy in POLICIES)
        closed = "" if found["gap_closed"] is None else f"{found['gap_closed']:12.2f}"
        print(f"{title:34}{costs}{closed}", file=sys.stderr)
        return found

    main_rows = [row for row in rows if row["kind"] == MAIN]
    last: dict[str, Any] = {}
    for several, key in ((False, "one_zone"), (True, "several_zones")):
        some = [row for row in main_rows if row["several"] == several]
        if not some:
            continue
        last[key] = {}
        for slack in slacks:
            part = [row for row in some if row["slack"] == slack]
            last[key][f"{slack:g}"] = line(f"{key}, slack {slack:g}", part)
        for where in dict.fromkeys(row["where"] for row in some):
            line(f"  {where}", [row for row in some if row["where"] == where])
    last["other_jobs"] = []
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"] != MAIN):
        some = [row for row in rows if row["kind"] == kind]
        title = f"{kind.work_h:g} h, start {kind.overhead_h:g} h, {kind.ratio:g}x"
        last["other_jobs"].append({"job": title} | line(title, some))
    total = summary(main_rows)
    total |= {"missed_any": sum(row["missed"]["factory"] for row in rows)}
    print(json.dumps(total | last))


if __name__ == "__main__":
    main()

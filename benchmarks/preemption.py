"""What a reclaimed node costs a tuning run: steps lost, seconds until it goes on, equal bits.

    python -m benchmarks.preemption --runs 2
    python -m benchmarks.preemption --runs 1 --model smollm2-135m --steps 20

A real Ray cluster of a head and two worker nodes on this machine, each worker node with room for
the run. The node the run is on is drained as a spot provider would, and killed at the deadline
(`with notice`), or killed out of the blue (`without`). The reference is the same run left alone,
and what it leaves must be equal bit by bit. `recovery_s` runs from the node's death (or the run's
leaving it) to the first step of the next start, loading libraries, model and data not counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import config as factory_config
from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import ConfigError
from factory.training import dataset
from factory.training.config import check
from factory.training.dataset import Example, Turn
from factory.training.errors import TrainingError
from factory.training.run import RunFolder
from factory.training.train import Task, launch

SAVE_STEPS = 5
NOTICE_S = 15
_PATIENCE_S = 180.0


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def examples(count: int) -> list[Example]:
    """Conversations to train on; what they say does not matter here."""
    rows = []
    for number in range(count):
        turns = (
            Turn(role="user", content=f"Which number is {number} times three? " * (1 + number % 3)),
            Turn(role="assistant", content=str(3 * number)),
        )
        rows.append(Example(messages=turns, id=str(number), group=str(number)))
    return rows


@contextmanager
def cluster() -> Iterator[Any]:
    """A head without room for the run, and two nodes with; yields the cluster."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@dataclass(frozen=True, slots=True)
class Drill:
    """What one reclaimed node came to."""

    lost: int
    recovery_s: float
    load_s: float
    weights: bytes


class Reclaim(threading.Thread):
    """Takes away the node a run is on, once the run is a little past a checkpoint."""

    def __init__(self, cluster: Any, run: RunFolder, notice_s: int, at_step: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.run_folder, self.notice_s, self.at_step = cluster, run, notice_s, at_step
        self.killed_at = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        """Wait, drain if there is a notice, and kill."""
        try:
            self._reclaim()
        except Exception as error:
            self.error = error

    def _reclaim(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not any(point["step"] >= self.at_step for point in self.run_folder.points()):
            if time.monotonic() > deadline:
                raise TrainingError(f"step {self.at_step} was not reached in {_PATIENCE_S:g} s")
            time.sleep(0.02)
        place = self.run_folder.starts()[-1]["place"]
        node = next(item for item in self.cluster.worker_nodes if item.node_id == place)
        if self.notice_s:
            _drain(self.cluster.address, place, self.notice_s)
            time.sleep(self.notice_s)
        self.killed_at = time.time()
        self.cluster.remove_node(node, allow_graceful=False)


def _drain(address: str, node: str, seconds: int) -> None:
    command = Path(sys.executable).with_name("ray")
    subprocess.run(
        [
            *(str(command), "drain-node", "--address", address, "--node-id", node),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def drill(cluster: Any, task: Task, notice_s: int | None, at_step: int) -> Drill:
    """One run; its node is taken at `at_step` with a notice of so many seconds, 0 or None never."""
    run = RunFolder(Path(task.run))
    reclaim = None
    if notice_s is not None:
        reclaim = Reclaim(cluster, run, notice_s, at_step)
        reclaim.start()
    summary = launch(task, cpus=1, say=say)
    recovery = 0.0
    starts = run.starts()
    if reclaim is not None:
        reclaim.join()
        if reclaim.error:
            raise reclaim.error
        cluster.add_node(num_cpus=1)
        if len(starts) < 2:
            raise TrainingError("the run was over before its node was taken; give more --steps")
        left = starts[1].get("left_at") or reclaim.killed_at
        recovery = starts[1]["at"] - left - starts[1]["load_s"]
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    return Drill(summary.lost, recovery, starts[-1]["load_s"], weights)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preemption",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=1, help="reclaimed nodes of each kind")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a run")
    parser.add_argument("--model", default="smollm2-135m", help="a catalog entry or a folder")
    given = parser.parse_args(argv)
    if given.runs < 1 or given.steps < 4 * SAVE_STEPS:
        parser.error(f"--runs must be at least 1 and --steps at least {4 * SAVE_STEPS}")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        settings = factory_config.load()
        weights = Path(given.model)
        if given.model in settings.models:
            weights = pull(settings, given.model, ObjectStore(settings.objects)).path
        with tempfile.TemporaryDirectory(prefix="preemption-") as folder, cluster() as nodes:
            closing = measure(nodes, Path(folder), weights, given.runs, given.steps)
    except (CatalogError, ConfigError, TrainingError) as error:
        say(f"error: {error}")
        return 1
    print(json.dumps(closing))
    return 0


def measure(nodes: Any, folder: Path, weights: Path, runs: int, steps: int) -> dict[str, Any]:
    """Every drill `runs` times beside the run left alone."""
    rows = examples(64)
    data = folder / "data"
    data.mkdir()
    split = {"train": rows[:56], "validation": rows[56:]}
    dataset.write(data, split, dataset.card(split, name="numbers"))
    config = check(
        {
            "model": str(weights),
            "dataset": str(data),
            "lora_r": 8,
            "lora_dropout": 0.05,
            "per_device_train_batch_size": 2,
            "max_steps": steps,
            "save_steps": SAVE_STEPS,
            "logging_steps": 1,
            "eval_samples": 0,
        },
        "the benchmark",
    )

    def task(name: str) -> Task:
        return Task(
            config=config.model_dump(mode="json"),
            model=str(weights),
            base_name="base",
            revision="",
            data=str(data),
            run=str(folder / name),
            fingerprint=config.fingerprint(),
            threads=1,
        )

    alone = drill(nodes, task("alone"), None, 0)
    say(f"left alone: model and data load in {alone.load_s:.1f} s")
    found: dict[str, list[Drill]] = {"with": [], "without": []}
    for number in range(runs):
        for kind, notice in (("with", NOTICE_S), ("without", 0)):
            at_step = SAVE_STEPS + 2 + number % SAVE_STEPS
            found[kind].append(drill(nodes, task(f"{kind}-{number}"), notice, at_step))
            latest = found[kind][-1]
            say(
                f"{kind} notice: {latest.lost} steps lost, on again {latest.recovery_s:.1f} s "
                f"later and {latest.load_s:.1f} s of loading, "
                f"{'equal' if latest.weights == alone.weights else 'DIFFERENT'} bits"
            )
    every = [*found["with"], *found["without"]]
    return {
        "steps_lost_with_notice": max(item.lost for item in found["with"]),
        "steps_lost_without_notice": max(item.lost for item in found["without"]),
        "recovery_s": round(max(item.recovery_s for item in every), 1),
        "bitwise_equal": all(item.weights == alone.weights for item in every),
        "recovery_with_notice_s": _middle(found["with"]),
        "recovery_without_notice_s": _middle(found["without"]),
        "load_s": round(statistics.median(item.load_s for item in every), 1),
        "save_steps": SAVE_STEPS,
        "runs": runs,
    }


def _middle(drills: Sequence[Drill]) -> float:
    return round(statistics.median(item.recovery_s for item in drills), 1)


if __name__ == "__main__":
    raise SystemExit(main())

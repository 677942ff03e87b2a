"""One cycle of a real internal endpoint: traffic, down to nothing, and back when somebody asks.

    python -m benchmarks.sleep_cycle --plot cycle.png

A line with one internal endpoint gets a request a second for a while, then none until its engine is
gone, then again. Seen from outside: what each request got, the replicas that Serve runs, and the
memory of their processes. The reference is the same engine kept awake all the time. The last line
is one JSON object.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer

from benchmarks.attached import attached
from benchmarks.drills import say
from benchmarks.small_line import small_line
from factory.cluster.local import require

IDLE_S = 15
"""After so many seconds without a request the engine may go."""
TRAFFIC_S = 12.0
"""Seconds of traffic before it sleeps."""
AGAIN_S = 32.0
"""Seconds of traffic that wakes it, and goes on."""
ASLEEP_S = 8.0
"""Seconds that it is left asleep."""
PATIENCE_S = 240.0
"""Seconds in which it must have gone, or answer."""
EVERY_S = 0.25
"""Seconds between two looks."""
TOKENS = 8
ENGINE = "ServeReplica:factory:engine"


@dataclass(frozen=True, slots=True)
class Look:
    """What is there at one moment."""

    at: float
    awake: int
    """Replicas that run and have a model."""
    memory: float
    """Bytes of their processes."""


@dataclass
class Cycle:
    """All that was seen. Times are seconds since the start."""

    looks: list[Look] = field(default_factory=list)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """When it was asked, how long it took, and the HTTP status."""


class Watching:
    """Looks at the line from outside, as long as the block lasts."""

    def __init__(self, cluster: int, url: str) -> None:
        """`cluster` is the process id of the cluster's head."""
        self._head, self._url = psutil.Process(cluster), url
        self.restart()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def restart(self) -> None:
        """Forget what was seen, and begin at 0."""
        self.cycle, self.begun = Cycle(), time.monotonic()

    def until(self, condition: Callable[[Look], bool]) -> None:
        """Return when the newest look fulfils it. Raises `RuntimeError` when it never does."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.cycle.looks and condition(self.cycle.looks[-1])):
            if time.monotonic() > deadline:
                raise RuntimeError(f"it did not come about in {PATIENCE_S:.0f} s")
            time.sleep(EVERY_S)

    def _watch(self) -> None:
        from ray import serve

        while not self._over.wait(EVERY_S):
            cycle, begun = self.cycle, self.begun
            asleep = httpx.get(f"{self._url}/readyz", timeout=30).json()["asleep"]
            running = sum(
                one.replica_states.get("RUNNING", 0)
                for name, application in serve.status().applications.items()
                if name.startswith("factory:engine")
                for one in application.deployments.values()
            )
            memory = sum(map(_memory, self._head.children(recursive=True)))
            cycle.looks.append(Look(time.monotonic() - begun, 0 if asleep else running, memory))


def _memory(process: psutil.Process) -> float:
    """Bytes of an engine's process; 0 for every other, and for one that has just ended."""
    try:
        return process.memory_info().rss if ENGINE in " ".join(process.cmdline()) else 0
    except psutil.Error:
        return 0


def ask(url: str, key: str) -> int:
    """Ask something new; the HTTP status, once there is an answer."""
    text = f"{time.time_ns()}: tell me about the sea."
    body = {
        "model": "lab",
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": text}],
    }
    headers = {"Authorization": f"Bearer {key}"}
    route = f"{url}/v1/chat/completions"
    return httpx.post(route, headers=headers, json=body, timeout=PATIENCE_S).status_code


def traffic(url: str, key: str, watching: Watching, seconds: float) -> None:
    """Ask something new every second, whether or not the last was answered."""
    cycle, begun = watching.cycle, watching.begun

    def note() -> None:
        at = time.monotonic()
        status = ask(url, key)
        cycle.answers.append((at - begun, time.monotonic() - at, status))

    with ThreadPoolExecutor(64) as pool:
        asked: list[Future[None]] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            asked.append(pool.submit(note))
            time.sleep(1.0)
        for one in asked:
            one.result()


def run(standby: bool) -> Cycle:
    """One cycle of a new line."""
    lab = {"class": "internal", "scaling": {"idle_after_s": IDLE_S}}
    with small_line({"lab": lab}, model={"scaling": {"standby": standby}}) as line:
        url, key, factory = line.url, line.keys["lab"], line.factory
        cluster = require(factory.settings)
        with (
            attached(factory, line.file),
            Watching(cluster.pid, url) as watching,
        ):
            say("traffic")
            ask(url, key)
            watching.restart()
            traffic(url, key, watching, TRAFFIC_S)
            say("silence")
            watching.until(lambda look: look.awake == 0)
            time.sleep(ASLEEP_S)
            say("traffic again")
            traffic(url, key, watching, AGAIN_S)
            say("silence again")
            watching.until(lambda look: look.awake == 0)
            time.sleep(ASLEEP_S)
        return watching.cycle


def figures(cycle: Cycle) -> dict[str, Any]:
    """What the cycle was like."""
    at = np.array([look.at for look in cycle.looks])
    awake = np.array([look.awake for look in cycle.looks])
    memory = np.array([look.memory for look in cycle.looks])
    spans = np.diff(at, append=at[-1])
    slept = int(np.flatnonzero(awake == 0)[0])
    answers = sorted(cycle.answers)
    woken = [took for asked, took, _ in answers if asked > at[slept]]
    before = [asked + took for asked, took, _ in answers if asked < at[slept]]
    usual = [took for asked, took, _ in answers if asked < at[slept]]
    return {
        "requests": len(cycle.answers),
        "failed": sum(status != 200 for *_, status in cycle.answers),
        "zero_to_first_answer_s": round(woken[0], 1),
        "awake_p50_s": round(float(np.median(usual)), 2),
        "idle_to_zero_s": round(float(at[slept] - max(before)), 1),
        "replica_s": round(float((awake * spans).sum()), 1),
        "always_on_replica_s": round(float(spans.sum()), 1),
        "asleep_memory_mb": round(float(memory[awake == 0].min()) / 1e6),
        "awake_memory_mb": round(float(np.median(memory[awake > 0])) / 1e6),
    }


def draw(cycle: Cycle, path: Path, title: str) -> None:
    """The cycle as a picture, PNG, SVG or PDF by the suffix of `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(10, 6.5), sharex=True, layout="constrained")
    asked, took, _ = zip(*sorted(cycle.answers), strict=True)
    axes[0].vlines(asked, 0, took, color="#1b6ca8", lw=2)
    axes[0].set_ylabel("seconds until answered,\nby when it was asked")
    at = [look.at for look in cycle.looks]
    axes[1].fill_between(at, [look.awake for look in cycle.looks], step="post", color="#6b8f3c")
    axes[1].set_ylabel("engines awake")
    axes[1].set_yticks([0, 1])
    axes[2].fill_between(at, [look.memory / 1e9 for look in cycle.looks], color="#bbbbbb")
    axes[2].set_ylabel("memory of the\nengine, GB")
    axes[2].set_xlabel("seconds")
    axes[0].set_title(title, loc="left", fontsize=11)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
        axis.margins(x=0)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(
    plot: Annotated[Path | None, typer.Option(help="Where to draw it, .png or .svg.")] = None,
    standby: Annotated[
        bool, typer.Option(help="Keep a standby asleep instead of nothing.")
    ] = False,
) -> None:
    """Watch an endpoint sleep and wake. Example: python -m benchmarks.sleep_cycle --plot c.png"""
    if plot is not None and not plot.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {plot.resolve().parent} for the plot")
    cycle = run(standby)
    found = figures(cycle)
    if plot is not None:
        draw(
            cycle,
            plot,
            f"An internal endpoint asleep and woken: {found['failed']} of {found['requests']} "
            f"requests failed, the first of the sleeping one took "
            f"{found['zero_to_first_answer_s']:.0f} s",
        )
        found["plot"] = str(plot)
    print(json.dumps({**found, "standby": standby, "idle_after_s": IDLE_S}))


if __name__ == "__main__":
    typer.run(main)

"""Showing a run's progress: a bar on a terminal, a line now and then in a log.

    with Watch(run, sinks=[Bar(sys.stderr)]):
        launch(task)

The watch reads the run's curve while the workers write it and hands every new point to its sinks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from factory.training.run import RunFolder


class Sink(Protocol):
    """Something that wants the points of the curve."""

    def take(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Accept new points, oldest first, never none."""

    def close(self) -> None:
        """The run is over."""


class Watch:
    """Follows a curve from step `after` until it is left."""

    def __init__(
        self, run: RunFolder, sinks: Sequence[Sink], after: int = 0, every_s: float = 0.5
    ) -> None:
        self.run, self.sinks, self.seen, self.every_s = run, sinks, after, every_s
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self.thread.join()
        self._look()
        for sink in self.sinks:
            sink.close()

    def _follow(self) -> None:
        while not self.over.wait(self.every_s):
            self._look()

    def _look(self) -> None:
        points = self.run.points(after=self.seen)
        if points:
            self.seen = points[-1]["step"]
            for sink in self.sinks:
                sink.take(points)


def line(point: Mapping[str, Any]) -> str:
    """One point in words: `step 40  loss 0.93  850 tok/s  1:20 left`."""
    left = point.get("remaining_s")
    ends = f"  {tqdm.format_interval(left)} left" if left is not None else ""
    return (
        f"step {point['step']}  loss {point['recent_loss']:.3f}  "
        f"{point['tokens_per_s']:.0f} tok/s{ends}"
    )


class Bar:
    """Progress on a stream: one moving bar on a terminal, whole lines elsewhere."""

    def __init__(
        self, stream: TextIO, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.every_s, self.clock = stream, every_s, clock
        self.bar: Any = None
        self.last = -float("inf")
        if stream.isatty():
            self.bar = tqdm(total=100, file=stream, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def take(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Show the newest point."""
        point = points[-1]
        if self.bar is not None:
            self.bar.n = round(100 * point["progress"])
            self.bar.set_description_str(line(point))
        elif point["progress"] >= 1 or self.clock() - self.last >= self.every_s:
            self.last = self.clock()
            share = f"{100 * point['progress']:3.0f}%"
            print(f"{share}  {line(point)}", file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()

"""What the trials of a search have cost, kept while Ray Tune runs them, and the end of the money.

    spending = Spending(root, trials=8, nusd_per_hour=rate, budget_nusd=50_000_000)
    RunConfig(callbacks=[spending], stop=Till(spending))

A trial costs the time it holds its share of a node, whether it reports or not. Everything is kept
in one file of the search's folder, so that a search goes on with what it had spent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper

from factory.training.search import Decision, cost, decide
from factory.training.trial import failure


def _quiet(text: str) -> None:
    """Tell nobody; a lambda could not go with Ray Tune's state."""


class Spending(Callback):  # type: ignore[misc, unused-ignore]
    """Counts as Ray Tune starts and ends trials.

    `nusd_per_hour` is the price of what one trial holds. `say` is told of every report.
    """

    def __init__(
        self,
        root: Path,
        *,
        trials: int,
        nusd_per_hour: int,
        budget_nusd: int,
        say: Callable[[str], None] = _quiet,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = root / "spending.json"
        self.trials, self.nusd_per_hour, self.budget_nusd = trials, nusd_per_hour, budget_nusd
        self.say, self.clock = say, clock
        self.running: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.stopped = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # What ran when the search was interrupted was counted up to the last note.
        self.running = {}
        if self.path.exists():
            kept = json.loads(self.path.read_text("utf-8"))
            self.seconds, self.ended = kept["seconds"], kept["ended"]
            self.stopped = kept["stopped"]

    def held(self) -> dict[str, float]:
        """Seconds that each trial has held its share of a node until now."""
        now, found = self.clock(), dict(self.seconds)
        for name, since in self.running.items():
            found[name] = found.get(name, 0.0) + now - since
        return found

    def nusd(self, seconds: float) -> int:
        """Nano-dollars for a trial that held its share so long."""
        return cost(seconds, 1.0, self.nusd_per_hour)

    def decision(self) -> Decision:
        """Whether the search goes on."""
        spent = sum(self.nusd(each) for each in self.held().values())
        running = len(self.running)
        waiting = self.trials - len(self.ended.keys() | self.running.keys())
        found = decide(
            spent_nusd=spent, budget_nusd=self.budget_nusd, running=running, waiting=waiting
        )
        if found.stop and spent >= self.budget_nusd and running + waiting and not self.stopped:
            self.stopped = found.reason
            self.note()
        return found

    def note(self) -> None:
        """Write down what is known, whole or not at all."""
        kept = {"seconds": self.held(), "ended": self.ended, "stopped": self.stopped}
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(kept), "utf-8")
        draft.replace(self.path)

    def end(self, name: str, reason: str = "") -> None:
        """A trial has ended; `reason` says why if it failed.

        One that is told to stop for lack of money holds its share until Ray has ended its process.
        """
        if not self.stopped and name in self.running:
            self.seconds = {**self.seconds, name: self.held()[name]}
            del self.running[name]
        self.ended[name] = {"failure": reason, "out_of_money": bool(self.stopped)}
        self.note()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's: a trial holds its share from here on."""
        name = trial.config["trial"]
        self.ended.pop(name, None)
        self.running.setdefault(name, self.clock())
        self.note()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Ray Tune's: a trial has reported."""
        name = trial.config["trial"]
        self.note()
        spent = sum(self.nusd(each) for each in self.held().values())
        self.say(
            f"{name}: step {result['step']}, validation loss {result['validation_loss']:.4f}; "
            f"{spent / 1e9:.7f} of {self.budget_nusd / 1e9:.7f} dollars spent"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's: a trial has ended, or was ended."""
        self.end(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's: a trial has failed."""
        name = trial.config["trial"]
        reason = failure(self.path.parent / name) or "its process died"
        self.end(name, reason)
        self.say(f"{name} failed: {reason}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ray Tune's: the last process of the search is gone."""
        self.seconds, self.running = self.held(), {}
        self.note()


class Till(Stopper):  # type: ignore[misc, unused-ignore]
    """Ray Tune's stopper: ends the search when the money is spent."""

    def __init__(self, spending: Spending) -> None:
        self.spending = spending

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never ends one trial; that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials end now."""
        return self.spending.decision().stop

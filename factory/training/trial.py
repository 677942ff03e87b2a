"""One trial of a search, in the process Ray Tune gives it: trains, and reports as it goes.

    write(root, trial.name, task, validation=folder)      # the driver
    Tuner(run, param_space={"root": root, "trial": tune.grid_search(names)})

Trial and driver share the search's folder. A trial that starts again goes on from its own newest
checkpoint.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from factory.training.errors import TrainingError
from factory.training.run import RunFolder

# Nothing else of the trainer here: Ray's driver and every actor read this module first.


def write(root: Path, name: str, task: Any, validation: Path) -> None:
    """Put a trial's `Task` into its folder; `validation` has the split that judges all trials."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "task.draft"
    draft.write_text(json.dumps({"task": asdict(task), "validation": str(validation)}), "utf-8")
    draft.replace(folder / "task.json")


def curve(folder: Path) -> tuple[tuple[int, float], ...]:
    """Steps and validation losses that a trial has reported, the later where one came twice."""
    path = folder / "validation.jsonl"
    if not path.exists():
        return ()
    points = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    return tuple(sorted({point["step"]: point["validation_loss"] for point in points}.items()))


def failure(folder: Path) -> str:
    """Why a trial's last start failed, empty where it did not say."""
    path = folder / "failure"
    return path.read_text("utf-8")[:400] if path.exists() else ""


def run(params: dict[str, Any]) -> None:
    """Ray Tune's function trainable: `root` and `trial` name the folder that `write` made.

    Raises `TrainingError` or `DatasetError`, which end this trial only.
    """
    from ray import tune

    folder = Path(params["root"]) / params["trial"]

    def report(step: int, loss: float) -> None:
        with (folder / "validation.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "validation_loss": loss}) + "\n")
        tune.report({"step": step, "validation_loss": loss})

    before = curve(folder)
    (folder / "failure").unlink(missing_ok=True)
    try:
        _train(folder, report)
    except Exception as error:
        words = str(error).strip().splitlines()
        (folder / "failure").write_text(words[-1] if words else type(error).__name__, "utf-8")
        raise
    if before and curve(folder) == before:  # it had ended, but the driver did not hear of it
        tune.report({"step": before[-1][0], "validation_loss": before[-1][1]})


def _train(folder: Path, report: Any) -> None:
    import torch
    from transformers.utils import logging

    from factory.training import model
    from factory.training.checkpoint import Counters
    from factory.training.config import check
    from factory.training.loop import Data, Peers, fit, validate
    from factory.training.train import Task, load_data

    begun = time.monotonic()
    logging.disable_progress_bar()
    given = json.loads((folder / "task.json").read_text("utf-8"))
    task = Task(**given["task"])
    torch.set_num_threads(task.threads)
    config = check(task.config, "the trial")
    tuned, tokenizer = model.build(task.model, config)
    data = load_data(Path(task.data), tokenizer, config)
    if given["validation"] != task.data:
        judged = load_data(Path(given["validation"]), tokenizer, config).validation
        data = Data(train=data.train, validation=judged)

    def saved(now: Counters) -> None:
        loss, _ = validate(config, tuned, data.validation)
        tuned.train()
        if loss is None:
            raise TrainingError("the validation split is empty; trials are judged by it")
        report(now.step, loss)

    peers = Peers(saved=saved, since=begun, load_s=time.monotonic() - begun)
    # The loop's own scoring at the end would only repeat the last report's.
    quiet = config.model_copy(update={"eval_samples": 0})
    fit(quiet, tuned, data, RunFolder(Path(task.run)), task.fingerprint, peers)

"""Distil a teacher into a smaller student on Ray Train.

    python -m pipelines.distill                                      # the default job config
    python -m pipelines.distill --teacher helpdesk@champion --student-layers 10 --max-steps 300
    python -m pipelines.distill --dry-run                            # tokens, memory, time, dollars
    python -m pipelines.distill --schema                             # every argument, JSON Schema
    ray job submit --working-dir . -- python -m pipelines.distill --run-name student-1

The teacher is a version of the registry (adapters are folded into their base), a catalog entry or
a folder. It answers the unlabelled `prompts`, what it says is kept compressed in the object store,
and the student learns from that and from the data's own answers. With `--distillation on_policy`
the student answers as well (a share `lmbda` of the batches), and learns what the teacher would have
said at each of its own tokens. The same command with the same
`--run-name` goes on where it stopped. The last line on standard output is one JSON object; on
failure there is one sentence on standard error, the exit code is not 0, and no weights are stored.
`python -m pipelines.evaluate --name NAME` then judges the student like any other candidate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factory import config as factory_config
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.registry.versions import WEIGHTS
from factory.training import dataset, distill, estimate, share
from factory.training.config import load_as
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from factory.training.estimate import Estimate
from factory.training.loop import Summary
from factory.training.run import RunFolder
from factory.training.tracking import Tracked
from factory.training.train import Task, free_cpus, launch
from factory.training.watch import Bar, Watch
from pipelines.closing import GOES_ON, closed
from pipelines.finetune import (
    Say,
    add_flags,
    figures,
    ray_cluster,
    run_name,
    to_stderr,
)
from pipelines.lesson import Lesson, Start, foresee, plan
from pipelines.taught import teach_data

DEFAULT_CONFIG = Path(__file__).with_name("distill.yaml")


def run(
    settings: Settings, config: DistillConfig, name: str | None = None, say: Say = to_stderr
) -> dict[str, Any]:
    """Teach, train, store the student's weights, and return the closing JSON object.

    Raises `TrainingError`, `DatasetError`, `EvaluationError`, `RegistryError` or `CatalogError`;
    then no weights are stored.
    """
    label = config.adapter_name or f"{config.dataset}-student"
    folder = RunFolder.named(settings.home / "runs", name or run_name(label, datetime.now(UTC)))
    folder.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.root / "lock", timeout=0):
            return _run(settings, config, label, folder, say)
    except Timeout as error:
        raise TrainingError(
            f"run '{folder.root.name}' is going on in another process; wait for it or choose "
            "another --run-name"
        ) from error


def estimated(settings: Settings, lesson: Lesson) -> tuple[Estimate, list[str]]:
    """What a run will take, and that in words. Raises as `foresee` does."""
    found, name = foresee(settings, lesson), f"{lesson.learner} of {lesson.teacher.name}"
    return found, estimate.table(found, name, lesson.corpus.name)


def dry_run(settings: Settings, config: DistillConfig, say: Say = to_stderr) -> dict[str, Any]:
    """Say what a run would take and start nothing. Raises as `run` does."""
    lesson = plan(settings, config)
    found, lines = estimated(settings, lesson)
    for text in lines:
        say(text)
    return {
        "dry_run": True,
        "teacher": lesson.teacher.name,
        "teacher_hash": lesson.teacher.hash,
        "layers": lesson.start.layers,
        "data_hash": lesson.corpus.hash,
        "prompts": len(lesson.prompts),
        **estimate.plain(found),
    }


def _run(
    settings: Settings, config: DistillConfig, label: str, folder: RunFolder, say: Say
) -> dict[str, Any]:
    store = ObjectStore(settings.objects)
    lesson = plan(settings, config)
    for text in estimated(settings, lesson)[1]:
        say(text)
    teacher, start, corpus = lesson.teacher, lesson.start, lesson.corpus
    say(f"run {folder.root.name}: {teacher.name} teaches {lesson.learner}, under {folder.root}")
    taught = teach_data(
        store,
        teacher,
        corpus.name,
        corpus.folder,
        lesson.prompts,
        config,
        settings.home / "taught",
        say,
    )
    card = dataset.read_card(taught.path)
    origin = {
        "data_hash": str(card["hash"]),
        "taught": taught.hash,
        "teacher": teacher.name,
        "teacher_hash": teacher.hash,
        "student_hash": start.hash,
        "base_model": teacher.base_model,
        "base_revision": teacher.base_revision,
    }
    summary, stored, run_id = _made(
        settings, config, label, folder, start, taught, origin, teacher.path
    )
    for note in summary.damaged:
        say(f"passed over a damaged checkpoint, {note}")
    return {
        "name": label,
        "weights": str(stored.path),
        "hash": stored.hash,
        "run_id": run_id,
        "run_name": folder.root.name,
        "layers": start.layers,
        "left_out": card["left_out"],
        **origin,
        **asdict(summary),
    }


ORIGIN = (
    "data_hash",
    "taught",
    "teacher",
    "teacher_hash",
    "student_hash",
    "base_model",
    "base_revision",
)
"""What a student's manifest says it was made from."""


def train_again(
    settings: Settings,
    config: DistillConfig,
    label: str,
    start: Object,
    taught: Object,
    meta: Mapping[str, Any],
    name: str,
    teacher: Object | None = None,
) -> dict[str, Any]:
    """Train a stored student again from what its manifest `meta` names; its new hash.

    `teacher` is asked anew by a student that learns on its own answers. Raises `TrainingError`
    or `DatasetError`.
    """
    folder = RunFolder.named(settings.home / "runs", name)
    folder.root.mkdir(parents=True, exist_ok=True)
    origin = {key: str(meta[key]) for key in ORIGIN}
    begin = Start(path=start.path, hash=start.hash, layers=None)
    path = None if teacher is None else teacher.path
    _, stored, _ = _made(settings, config, label, folder, begin, taught, origin, path)
    return {"hash": stored.hash}


def _made(
    settings: Settings,
    config: DistillConfig,
    label: str,
    folder: RunFolder,
    start: Start,
    taught: Object,
    origin: dict[str, str],
    teacher: Path | None,
) -> tuple[Summary, Object, str]:
    """Train and store; the summary, the stored weights, and the id of the MLflow run."""
    store = ObjectStore(settings.objects)
    tracked = Tracked.start(settings.mlflow_uri, label, folder, config.model_dump(), origin)
    try:
        summary = _train(config, start, taught, folder, origin, tracked, teacher)
        meta = {
            **origin,
            "run_name": folder.root.name,
            "run_id": tracked.run_id,
            "pipeline": "distill",
            "synthetic": dataset.read_card(taught.path).get("synthetic", {}),
            "config": config.model_dump(mode="json") | {"model": origin["base_model"]},
            "libraries": {lib: metadata.version(lib) for lib in ("torch", "transformers")},
        }
        stored = store.put(WEIGHTS, label, lambda target: _copy(folder.model, target), meta)
    except BaseException as error:
        tracked.fail(str(error) or type(error).__name__)
        raise
    tracked.finish(figures(summary), {"weights_hash": stored.hash})
    return summary, stored, tracked.run_id


def _train(
    config: DistillConfig,
    start: Start,
    taught: Object,
    folder: RunFolder,
    origin: dict[str, str],
    tracked: Tracked,
    teacher: Path | None,
) -> Summary:
    import ray

    # The teacher's weights decide, not what they are called: a version may be registered again.
    made_from = [f"{key}={origin[key]}" for key in sorted(origin) if key != "teacher"]
    decided = [config.fingerprint(), *made_from]
    with ray_cluster():
        size = share.queued(os.environ)
        cpus = share.cpus_of_worker(config, free_cpus(), size)
        gpu = share.takes_gpus(config, ray.available_resources().get("GPU", 0), size)
        task = Task(
            config=config.model_dump(mode="json"),
            model=str(start.path),
            base_name=origin["base_model"],
            revision=start.hash,
            data=str(taught.path),
            run=str(folder.root),
            fingerprint=hashlib.sha256("\n".join(decided).encode()).hexdigest(),
            threads=cpus,
            teacher=str(teacher) if teacher and config.distillation == "on_policy" else None,
        )
        seen = max((point["step"] for point in folder.points()), default=0)
        with Watch(folder, [Bar(sys.stderr), tracked], after=seen):
            return launch(task, cpus, gpu, work=distill.run_distillation, kind=DistillConfig)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def parser() -> argparse.ArgumentParser:
    """Flags: one for every field of `DistillConfig`, under both spellings of its name."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="job config, YAML")
    result.add_argument("--run-name", help="name of the run; an existing one is resumed")
    result.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    result.add_argument("--schema", action="store_true", help="print the arguments' JSON Schema")
    add_flags(result, DistillConfig)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = vars(parser().parse_args(argv))
    path, name = given.pop("config"), given.pop("run_name")
    dry, schema = given.pop("dry_run"), given.pop("schema")
    if schema:
        print(json.dumps(DistillConfig.model_json_schema(), indent=2))
        return 0
    logging.getLogger("mlflow").setLevel(logging.WARNING)

    def job() -> dict[str, Any]:
        config, settings = load_as(DistillConfig, path, given), factory_config.load()
        return dry_run(settings, config) if dry else run(settings, config, name)

    return closed(job, interrupted=GOES_ON)


if __name__ == "__main__":
    raise SystemExit(main())

"""Distil a teacher into a smaller student on Ray Train.

    python -m pipelines.distill                                       # the default job config
    python -m pipelines.distill --teacher helpdesk@champion --student-layers 10 --max-steps 300
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
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factory import config as factory_config
from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.ledger.store import open_ledger
from factory.registry.versions import WEIGHTS, Registry
from factory.training import dataset, distill, student
from factory.training.config import load_as
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from factory.training.loop import Summary
from factory.training.merge import merge
from factory.training.run import RunFolder
from factory.training.teaching import shared_vocabulary
from factory.training.tracking import Tracked
from factory.training.train import Task, free_cpus, launch
from factory.training.watch import Bar, Watch
from pipelines.closing import GOES_ON, closed
from pipelines.finetune import (
    Say,
    add_flags,
    figures,
    find_base,
    find_data,
    ray_cluster,
    run_name,
    share_of_cpus,
    to_stderr,
)
from pipelines.taught import Teacher, find_prompts, teach_data

DEFAULT_CONFIG = Path(__file__).with_name("distill.yaml")

_VERSION = re.compile(r"(?P<name>[\w.-]+)@(?P<version>champion|\d+)")


def find_teacher(settings: Settings, store: ObjectStore, wanted: str) -> Teacher:
    """The weights that teach: of the registry, of the catalog, or in a folder.

    An adapter is folded into its base. Raises `TrainingError`, `RegistryError` or `CatalogError`.
    """
    if found := _VERSION.fullmatch(wanted):
        return _registered(settings, store, found["name"], found["version"])
    if wanted in settings.models:
        weights = pull.find(settings, wanted, store)
        if weights is None:
            raise TrainingError(
                f"model '{wanted}' is not in the object store; run `factory models pull {wanted}`"
            )
        revision = str(weights.meta.get("revision") or weights.hash)
        return _teacher(wanted, weights, wanted, weights.hash, revision)
    base = find_base(settings, store, wanted)
    return Teacher(
        name=base.name,
        path=base.folder,
        hash=base.revision,
        base_model=base.name,
        base_hash=base.revision,
        base_revision=base.revision,
    )


def _registered(settings: Settings, store: ObjectStore, name: str, which: str) -> Teacher:
    with closing(open_ledger(settings.database_url)) as ledger:
        registry = Registry(settings, ledger)
        if which == "champion":
            version = registry.champion(name)
            if version is None:
                raise TrainingError(
                    f"no version of '{name}' is promoted; evaluate and promote one first, or name "
                    f"a version as {name}@NUMBER"
                )
        else:
            version = registry.get(name, int(which))
        weights = registry.weights(name, version.version)
    line = version.lineage
    if not version.whole:
        base = store.get(pull.KIND, line.base_model, line.base_hash)
        weights = merge(store, base, version.path, version.adapter_hash)
    label = f"{name}@{version.version}"
    found = _teacher(label, weights, line.base_model, line.base_hash, line.base_revision)
    return replace(found, data_hash=line.data_hash)


def _teacher(
    name: str, weights: Object, base_model: str, base_hash: str, base_revision: str
) -> Teacher:
    return Teacher(
        name=name,
        path=weights.path,
        hash=weights.hash,
        base_model=base_model,
        base_hash=base_hash,
        base_revision=base_revision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The weights a student starts from."""

    path: Path
    hash: str
    layers: tuple[int, ...] | None
    """Which of the teacher's; None for a student that was given."""


def find_student(
    settings: Settings, store: ObjectStore, teacher: Teacher, config: DistillConfig
) -> Start:
    """The student that was given, or one cut from the teacher, found or made.

    Raises `TrainingError`.
    """
    if config.student is not None:
        given = find_base(settings, store, config.student)
        return Start(path=given.folder, hash=given.revision, layers=None)
    total = json.loads((teacher.path / "config.json").read_text("utf-8")).get("num_hidden_layers")
    wanted = config.student_layers
    if isinstance(wanted, int):
        wanted = list(student.choose_layers(int(total or 0), wanted, config.student_layer_choice))
    meta = {"teacher": teacher.hash, "layers": wanted}
    name = f"{teacher.base_model}-{len(wanted)}-layers"
    for item in store.list("students"):
        if item.name == name and all(item.meta.get(key) == meta[key] for key in meta):
            return Start(path=item.path, hash=item.hash, layers=tuple(wanted))

    def fill(folder: Path) -> dict[str, Any]:
        cut = student.make_student(teacher.path, wanted, folder)
        return {"parameters": cut.parameters, "teacher_parameters": cut.teacher_parameters}

    made = store.put("students", name, fill, meta)
    return Start(path=made.path, hash=made.hash, layers=tuple(wanted))


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


def _run(
    settings: Settings, config: DistillConfig, label: str, folder: RunFolder, say: Say
) -> dict[str, Any]:
    store = ObjectStore(settings.objects)
    teacher = find_teacher(settings, store, config.teacher)
    start = find_student(settings, store, teacher, config)
    if config.distillation != "sequence":
        _check_vocabulary(teacher.path, start.path)
    say(f"run {folder.root.name}: {teacher.name} teaches {_shape(start)}, under {folder.root}")
    corpus = find_data(store, config.dataset)
    prompts = find_prompts(store, config.prompts)
    taught = teach_data(
        store, teacher, corpus.name, corpus.folder, prompts, config, settings.home / "taught", say
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
        resources = ray.available_resources()
        cpus = share_of_cpus(config, free_cpus())
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
        gpu = resources.get("GPU", 0) >= config.most_workers
        seen = max((point["step"] for point in folder.points()), default=0)
        with Watch(folder, [Bar(sys.stderr), tracked], after=seen):
            return launch(task, cpus, gpu, work=distill.run_distillation, kind=DistillConfig)


def _check_vocabulary(teacher: Path, student: Path) -> None:
    """Raises `TrainingError` when logits of the two cannot be compared."""
    from transformers import AutoTokenizer

    shared_vocabulary(
        AutoTokenizer.from_pretrained(teacher, local_files_only=True),
        AutoTokenizer.from_pretrained(student, local_files_only=True),
    )


def _shape(start: Start) -> str:
    if start.layers is None:
        return f"the student in {start.path}"
    return f"a student of its layers {', '.join(map(str, start.layers))}"


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
    add_flags(result, DistillConfig)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = vars(parser().parse_args(argv))
    path, name = given.pop("config"), given.pop("run_name")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return closed(
        lambda: run(factory_config.load(), load_as(DistillConfig, path, given), name),
        interrupted=GOES_ON,
    )


if __name__ == "__main__":
    raise SystemExit(main())

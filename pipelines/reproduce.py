"""Make a registered version again from its lineage, and compare; or retrain it as a new candidate.

    python -m pipelines.reproduce helpdesk@3              # again, beside the original: equal or not
    python -m pipelines.reproduce helpdesk@3 --retrain    # again, as a candidate of today's code
    factory registry reproduce helpdesk@3

Needs nothing but the registry and the object store: base, data, what a teacher said and the
arguments are all found by their hashes. A reproduction is made in a home of its own, so that it
changes nothing. On the same hardware, library versions and worker count it is bitwise equal; where
it is not, both are judged on the version's suite and the reproduction must score within the
original's 95 % interval. The last line on standard output is one JSON object. Exit code 0 when it
is reproduced, 3 when it is not, 1 with one sentence on standard error when something is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import config as factory_config
from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.harness import judge
from factory.evaluation.results import EvaluationError, wilson
from factory.evaluation.suite import Suite
from factory.evaluation.suite import read as read_suite
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.ledger.store import open_ledger
from factory.registry.errors import RegistryError
from factory.registry.lineage import library_versions
from factory.registry.versions import WEIGHTS, Registry, Version
from factory.training.config import check, check_as
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from pipelines import distill, finetune, quantize
from pipelines.closing import closed
from pipelines.finetune import Say, to_stderr
from pipelines.taught import Teacher

DIFFERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A version with everything it was made from, found by hash."""

    version: Version
    artifact: Object
    needed: tuple[Object, ...]
    """The objects of the store that making it again reads."""

    @property
    def pipeline(self) -> str:
        """Which job made it."""
        return str(self.artifact.meta.get("pipeline", "finetune"))


_TEACHERS = ("merged", WEIGHTS, pull.KIND)
"""Kinds of whole weights that teach, or are quantized."""


def find_origin(settings: Settings, store: ObjectStore, name: str, number: int) -> Origin:
    """A version and what it was made from.

    Raises `RegistryError`, `CatalogError`, or `TrainingError` for a part that is not in the store.
    """
    with closing(open_ledger(settings.database_url)) as ledger:
        registry = Registry(settings, ledger)
        version = registry.get(name, number)
        artifact = registry.weights(name, number)
    line, meta = version.lineage, artifact.meta
    base = store.get(pull.KIND, line.base_model, line.base_hash)
    match meta.get("pipeline", "finetune"):
        case "distill":
            needed = (
                base,
                _by_hash(store, "taught", meta["taught"]),
                _by_hash(store, "students", meta["student_hash"]),
            )
            if (meta.get("config") or {}).get("distillation") == "on_policy":
                needed += (_by_hash(store, _TEACHERS, meta["teacher_hash"]),)
        case "quantize":
            needed = (base, _by_hash(store, _TEACHERS, meta["source_hash"]))
        case _:
            needed = (base, _data(store, line.data_hash))
    for item in needed:
        store.verify(item)
    return Origin(version=version, artifact=artifact, needed=needed)


def _by_hash(store: ObjectStore, kinds: str | Sequence[str], wanted: str) -> Object:
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        for item in store.list(kind):
            if item.hash == wanted:
                return item
    raise TrainingError(
        f"the object store no longer has {kinds if isinstance(kinds, str) else kinds[0]} "
        f"{wanted[:12]}, which the version was made from; put it back, or retrain on other data"
    )


def _data(store: ObjectStore, data_hash: str) -> Object:
    for item in store.list("datasets"):
        if item.meta.get("data_hash") == data_hash:
            return item
    raise TrainingError(
        f"the object store has no data set {data_hash[:12]}, which the version was made from; a "
        "folder outside the store cannot be found again, so keep data sets in it"
    )


def rebuild(settings: Settings, origin: Origin, run_name: str, say: Say) -> Object:
    """Make the version again under `settings`, whose object store has all that is needed.

    Raises `TrainingError` or `DatasetError`.
    """
    store = ObjectStore(settings.objects)
    version, meta = origin.version, origin.artifact.meta
    match origin.pipeline:
        case "distill":
            _, taught, start, *teacher = origin.needed
            arguments = check_as(DistillConfig, _arguments(version), f"lineage of {version.name}")
            again = distill.train_again(
                settings, arguments, version.name, start, taught, meta, run_name, *teacher
            )
        case "quantize":
            source = origin.needed[1]
            teacher = Teacher(
                name=str(meta["config"]["source"]),
                path=source.path,
                hash=source.hash,
                base_model=version.lineage.base_model,
                base_hash=version.lineage.base_hash,
                base_revision=version.lineage.base_revision,
                data_hash=version.lineage.data_hash,
            )
            return quantize.make(store, teacher, version.name, meta["config"]["scheme"])
        case _:
            arguments = check(
                _arguments(version)
                | {"dataset": str(origin.needed[1].path), "adapter_name": version.name},
                f"lineage of {version.name}",
            )
            again = finetune.tune(settings, arguments, run_name, say)
    kind = WEIGHTS if version.whole else "adapters"
    return store.get(kind, version.name, again["hash"])


def _arguments(version: Version) -> dict[str, Any]:
    if not version.lineage.config:
        raise TrainingError(
            f"version {version.version} of '{version.name}' has no arguments in its lineage: it "
            "was not made by a job of the factory and cannot be made again"
        )
    return dict(version.lineage.config)


def reproduce(settings: Settings, name: str, number: int, say: Say = to_stderr) -> dict[str, Any]:
    """Make a version again in a home of its own and compare; the closing JSON object.

    Raises `RegistryError`, `CatalogError`, `TrainingError`, `DatasetError` or `EvaluationError`.
    """
    store = ObjectStore(settings.objects)
    origin = find_origin(settings, store, name, number)
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".reproduce-", dir=settings.home) as folder:
        elsewhere = settings.model_copy(update={"home": Path(folder), "database": "", "mlflow": ""})
        scratch = ObjectStore(elsewhere.objects)
        for item in origin.needed:
            _link(item, scratch)
        say(f"making {name} version {number} again from its lineage")
        again = rebuild(elsewhere, origin, "again", say)
        equal = again.hash == origin.artifact.hash
        differing = sorted(
            file
            for file in {*again.files, *origin.artifact.files}
            if again.files.get(file) != origin.artifact.files.get(file)
        )
        scores = None if equal else _scores(settings, store, origin, again, say)
    return {
        "name": name,
        "version": number,
        "pipeline": origin.pipeline,
        "hash": origin.artifact.hash,
        "again": again.hash,
        "bitwise_equal": equal,
        "differing_files": differing,
        "changed_versions": _changed(origin.version.lineage.versions),
        "scores": scores,
        "reproduced": equal or bool(scores and scores["within"]),
    }


def _link(item: Object, store: ObjectStore) -> None:
    """The same object in another store, without its bytes where the file system can."""
    target = store.root / item.kind / item.name / item.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(item.path, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(item.path, target)


def _changed(then: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Libraries whose version is another one today."""
    today = library_versions()
    return {
        name: [then.get(name), today.get(name)]
        for name in sorted({*then, *today})
        if then.get(name) != today.get(name)
    }


def _scores(
    settings: Settings, store: ObjectStore, origin: Origin, again: Object, say: Say
) -> dict[str, Any]:
    """The reproduction's accuracy beside the original's interval, on the version's suite."""
    suite = _suite(store, origin.version)
    say(f"it is not bitwise equal; judging it on {len(suite.cases)} cases")
    base, whole = origin.needed[0], origin.version.whole
    entry = settings.models.get(origin.version.lineage.base_model)
    answerer = TransformersAnswerer(
        again.path if whole else base.path,
        None if whole else again.path,
        threads=len(os.sched_getaffinity(0)),
        max_model_len=entry.max_model_len if entry else None,
    )
    found = judge(suite, answerer, store, force=True).results.summary.accuracy
    then = origin.version.metrics
    low, high = wilson(round(then.accuracy * then.cases), then.cases)
    return {
        "original": then.accuracy,
        "again": found,
        "low": low,
        "high": high,
        "within": low <= found <= high,
    }


def _suite(store: ObjectStore, version: Version) -> Suite:
    wanted = version.metrics.suite_hash
    for item in store.list("suites"):
        if item.meta.get("suite_hash") == wanted:
            return read_suite(item.path)
    raise EvaluationError(
        f"the object store no longer has suite {wanted[:12]}, which version {version.version} of "
        f"'{version.name}' was judged on; put it back to compare scores"
    )


def retrain(settings: Settings, name: str, number: int, say: Say = to_stderr) -> dict[str, Any]:
    """Make a version again as a candidate of its own; the closing JSON object.

    Nothing of the original's weights is read. Judge it with `python -m pipelines.evaluate`.
    Raises as `reproduce` does.
    """
    store = ObjectStore(settings.objects)
    origin = find_origin(settings, store, name, number)
    run_name = f"{name}-{number}-again"
    made = rebuild(settings, origin, run_name, say)
    return {
        "name": name,
        "version": number,
        "pipeline": origin.pipeline,
        "candidate": str(made.path),
        "hash": made.hash,
        "bitwise_equal": made.hash == origin.artifact.hash,
        "next": f"python -m pipelines.evaluate --name {name} --adapter {made.hash[:12]}",
    }


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("version", metavar="NAME@VERSION", help="a registered version")
    result.add_argument("--retrain", action="store_true", help="store it as a new candidate")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(argv)

    def job() -> dict[str, Any]:
        name, _, number = options.version.partition("@")
        if not number.isdigit():
            raise RegistryError(
                f"'{options.version}' names no version; write NAME@VERSION, such as helpdesk@3"
            )
        make = retrain if options.retrain else reproduce
        return make(factory_config.load(), name, int(number))

    return closed(job, code=lambda line: 0 if line.get("reproduced", True) else DIFFERS)


if __name__ == "__main__":
    raise SystemExit(main())

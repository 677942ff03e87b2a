"""Tune an open model with LoRA on Ray Train.

    python -m pipelines.finetune                                     # the default job config
    python -m pipelines.finetune --config job.yaml --max-steps 50    # flags win over the file
    python -m pipelines.finetune --dry-run                           # tokens, memory, time, dollars
    python -m pipelines.finetune --schema                            # every argument, JSON Schema
    ray job submit --working-dir . -- python -m pipelines.finetune --run-name pilot-1

Inside a Ray job it uses the job's cluster; alone it starts a local Ray and stops it. The same
command with the same `--run-name` goes on from the newest good checkpoint. The last line on
standard output is one JSON object; on failure there is one sentence on standard error, the exit
code is not 0, and no adapter is stored.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from factory import config as factory_config
from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import HubSource, Settings
from factory.registry.versions import WEIGHTS
from factory.training import dataset, estimate, screening, share
from factory.training.chat import template_hash
from factory.training.config import TrainConfig, load
from factory.training.errors import TrainingError
from factory.training.loop import Summary
from factory.training.run import RunFolder
from factory.training.tracking import Tracked
from factory.training.train import Task, free_cpus, launch, load_data
from factory.training.watch import Bar, Watch
from pipelines.closing import GOES_ON, closed

DEFAULT_CONFIG = Path(__file__).with_name("finetune.yaml")

SHOWN = 3
"""Examples that a note names."""

Say = Callable[[str], None]
"""Tells the person at the command one line."""


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Base:
    """The weights a run starts from."""

    folder: Path
    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The data a run learns from."""

    folder: Path
    name: str
    hash: str


def find_base(settings: Settings, store: ObjectStore, name: str) -> Base:
    """The base model: a pulled catalog entry, or a folder. Raises `TrainingError`."""
    if name in settings.models:
        found = pull.find(settings, name, store)
        if found is None:
            raise TrainingError(
                f"model '{name}' is not in the object store; run `factory models pull {name}`"
            )
        source = settings.models[name].source
        if isinstance(source, HubSource):
            return Base(found.path, source.hub, str(found.meta.get("revision", source.revision)))
        return Base(found.path, name, found.hash)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(settings.models))
        raise TrainingError(
            f"model '{name}' is neither in the catalog ({known}) nor a folder with config.json"
        )
    return Base(folder.resolve(), folder.resolve().name, _file_hash(folder))


def find_data(store: ObjectStore, name: str) -> Corpus:
    """The data set: the newest of that name in the store, or a folder.

    Raises `TrainingError` or `DatasetError`.
    """
    folder = Path(name).expanduser()
    if os.sep in name or folder.is_dir():
        label = folder.resolve().name
    else:
        found = store.find("datasets", name)
        if found is None:
            raise TrainingError(
                f"there is no data set '{name}' under '{store.root}'; make it first "
                "(`python -m pipelines.helpdesk` makes the pilot's) or give a folder"
            )
        folder, label = found.path, name
    present = [part for part in dataset.SPLITS if (folder / f"{part}.jsonl").exists()]
    needed = {"train", "validation"} - set(present)
    if needed:
        raise TrainingError(f"the data set in '{folder}' has no {min(needed)}.jsonl; add it")
    return Corpus(folder.resolve(), label, dataset.dataset_hash(dataset.read(folder, present)))


def fingerprint(config: TrainConfig, base: Base, data: Corpus) -> str:
    """Hex sha256 over what must stay the same for a run to be resumed."""
    parts = [config.fingerprint(), base.name, base.revision, data.hash]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """The Ray this process belongs to, or one of its own that ends with the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(namespace=os.environ.get("RAY_NAMESPACE"), **quiet)
    else:
        cpus = len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def run_name(adapter: str, now: datetime) -> str:
    """A new run's name, such as `helpdesk-20261123-140500-9f3a`."""
    return f"{adapter}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one run needs, found and checked."""

    config: TrainConfig
    base: Base
    corpus: Corpus
    run: RunFolder

    @property
    def adapter(self) -> str:
        """Name of the adapter in the object store and of the MLflow experiment."""
        return self.config.adapter_name or self.corpus.name

    @property
    def origin(self) -> dict[str, str]:
        """What the adapter was made from."""
        return {
            "data_hash": self.corpus.hash,
            "base": self.base.name,
            "base_revision": self.base.revision,
            "template_hash": template_hash(self.base.folder),
        }

    def task(self, threads: int) -> Task:
        """What is handed to the workers."""
        return Task(
            config=self.config.model_dump(mode="json"),
            model=str(self.base.folder),
            base_name=self.base.name,
            revision=self.base.revision,
            data=str(self.corpus.folder),
            run=str(self.run.root),
            fingerprint=fingerprint(self.config, self.base, self.corpus),
            threads=threads,
        )


def plan(settings: Settings, config: TrainConfig, name: str | None = None) -> Job:
    """Find the model and the data of a run and name it.

    Raises `TrainingError` or `DatasetError`.
    """
    store = ObjectStore(settings.objects)
    base = find_base(settings, store, config.model)
    corpus = find_data(store, config.dataset)
    label = config.adapter_name or corpus.name
    # A job of the queue keeps its name through all attempts, so a later one goes on.
    name = name or os.environ.get("FACTORY_JOB_ID") or run_name(label, datetime.now(UTC))
    folder = RunFolder.named(settings.home / "runs", name)
    return Job(config, base, corpus, folder)


def foresee(settings: Settings, job: Job) -> estimate.Estimate:
    """What a run will take. Raises `TrainingError` where it cannot be, or `DatasetError`."""
    from transformers import AutoTokenizer

    config = job.config
    tokenizer = AutoTokenizer.from_pretrained(job.base.folder)
    samples = load_data(job.corpus.folder, tokenizer, config).train
    rate = estimate.matrix_rate(config.bf16)
    cores = len(os.sched_getaffinity(0))

    def of(changed: TrainConfig) -> estimate.Estimate:
        return estimate.estimate(
            changed,
            estimate.measure(job.base.folder, changed),
            estimate.workload(changed, samples),
            flops_per_core=rate,
            cores=cores,
            pools=settings.pools,
        )

    found = of(config)
    lora = None
    if not config.use_peft:
        lora = of(config.model_copy(update={"use_peft": True}))
    available = psutil.virtual_memory().total
    estimate.refuse_what_cannot_be(found, config, len(samples), available, lora)
    return found


def dry_run(
    settings: Settings, config: TrainConfig, name: str | None = None, say: Say = to_stderr
) -> dict[str, Any]:
    """Say what a run would take and start nothing. Raises as `tune` does."""
    job = plan(settings, config, name)
    found = foresee(settings, job)
    for text in estimate.table(found, job.base.name, job.corpus.name):
        say(text)
    given = given_away(job.corpus, say)
    return {"dry_run": True, **job.origin, **estimate.plain(found), "given_away": given}


def given_away(corpus: Corpus, say: Say) -> dict[str, int]:
    """How many train examples nearly repeat a held-out one, by split; told if there are any.

    Empty for a data set that was made without such.
    """
    if "near_duplicates" in dataset.read_card(corpus.folder):
        return {}
    present = [part for part in dataset.SPLITS if (corpus.folder / f"{part}.jsonl").exists()]
    found = screening.given_away(dataset.read(corpus.folder, present))
    for part, names in found.items():
        if names:
            say(
                f"note       {len(names)} train examples nearly repeat one of the {part} split "
                f"({', '.join(names[:SHOWN])}), which flatters its score; "
                "`python -m pipelines.dataset` leaves such out"
            )
    return {part: len(names) for part, names in found.items()}


def tune(
    settings: Settings, config: TrainConfig, name: str | None = None, say: Say = to_stderr
) -> dict[str, Any]:
    """Train, store the adapter, and return the closing JSON object.

    Raises `TrainingError`, `DatasetError` or `CatalogError`; then no adapter is stored.
    """
    job = plan(settings, config, name)
    for text in estimate.table(foresee(settings, job), job.base.name, job.corpus.name):
        say(text)
    given_away(job.corpus, say)
    job.run.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.run.root / "lock", timeout=0):
            return _tune(settings, job, say)
    except Timeout as error:
        raise TrainingError(
            f"run '{job.run.root.name}' is going on in another process; wait for it or choose "
            "another --run-name"
        ) from error


def _tune(settings: Settings, job: Job, say: Say) -> dict[str, Any]:
    say(f"run {job.run.root.name}: {job.base.name} on {job.corpus.name}, under {job.run.root}")
    params = job.config.model_dump()
    tracked = Tracked.start(settings.mlflow_uri, job.adapter, job.run, params, job.origin)
    try:
        summary = _train(job, tracked, say)
        stored = store_result(ObjectStore(settings.objects), job, tracked.run_id)
    except BaseException as error:
        tracked.fail(str(error) or type(error).__name__)
        raise
    for note in summary.damaged:
        say(f"passed over a damaged checkpoint, {note}")
    if summary.resumed_from:
        say(f"went on from step {summary.resumed_from}")
    tracked.finish(figures(summary), {"adapter_hash": stored.hash})
    return {
        "adapter" if job.config.use_peft else "model": str(stored.path),
        "hash": stored.hash,
        "run_id": tracked.run_id,
        "run_name": job.run.root.name,
        **job.origin,
        **asdict(summary),
    }


def _train(job: Job, tracked: Tracked, say: Say) -> Summary:
    import ray

    with ray_cluster():
        size = share.queued(os.environ)
        cpus = share.cpus_of_worker(job.config, free_cpus(), size)
        gpu = share.takes_gpus(job.config, ray.available_resources().get("GPU", 0), size)
        seen = max((point["step"] for point in job.run.points()), default=0)
        with Watch(job.run, [Bar(sys.stderr), tracked], after=seen):
            return launch(job.task(cpus), cpus, gpu, say=say)


def store_result(store: ObjectStore, job: Job, run_id: str) -> Object:
    """Put the run's adapter or whole weights into the object store, with where it came from."""
    meta = {
        "run_name": job.run.root.name,
        "run_id": run_id,
        "config": job.config.model_dump(mode="json"),
        **job.origin,
        "synthetic": dataset.read_card(job.corpus.folder).get("synthetic", {}),
        "libraries": {lib: metadata.version(lib) for lib in ("torch", "transformers", "peft")},
    }
    made, kind = (job.run.adapter, "adapters") if job.config.use_peft else (job.run.model, WEIGHTS)

    def fill(folder: Path) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)

    return store.put(kind, job.adapter, fill, meta)


def figures(summary: Summary) -> dict[str, float]:
    figures = asdict(summary)
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _file_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def parser() -> argparse.ArgumentParser:
    """Flags: one for every field of `TrainConfig`, under both spellings of its name."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="job config, YAML")
    result.add_argument("--run-name", help="name of the run; an existing one is resumed")
    result.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    result.add_argument("--schema", action="store_true", help="print the arguments' JSON Schema")
    add_flags(result, TrainConfig)
    return result


def add_flags(result: argparse.ArgumentParser, kind: type[TrainConfig]) -> None:
    """One flag for every field of `kind`, under both spellings of its name."""
    for name, field in kind.model_fields.items():
        flags = sorted({f"--{name.replace('_', '-')}", f"--{name}"})
        help_ = (field.description or "").replace("%", "%%")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_}
        if field.annotation is bool:
            result.add_argument(*flags, **options, nargs="?", const=True, type=yaml.safe_load)
        else:
            result.add_argument(*flags, **options, type=yaml.safe_load, metavar="VALUE")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = vars(parser().parse_args(argv))
    path, name = given.pop("config"), given.pop("run_name")
    dry, schema = given.pop("dry_run"), given.pop("schema")
    if schema:
        print(json.dumps(TrainConfig.model_json_schema(), indent=2))
        return 0
    logging.getLogger("mlflow").setLevel(logging.WARNING)

    def job() -> dict[str, Any]:
        config, settings = load(path, given), factory_config.load()
        return dry_run(settings, config, name) if dry else tune(settings, config, name)

    return closed(job, interrupted=GOES_ON)


if __name__ == "__main__":
    raise SystemExit(main())

"""Search for better tuning arguments with Ray Tune and ASHA, within a budget of money.

    python -m pipelines.tune                                    # the default search
    python -m pipelines.tune --config search.yaml --max-usd 0.01 --num-samples 12
    python -m pipelines.tune --dry-run                          # every trial and what it may cost
    python -m pipelines.tune --schema                           # every argument, JSON Schema
    python -m pipelines.finetune --config .factory/runs/NAME/best.yaml --max-steps 220

ASHA stops trials that fall behind; the search ends when all trials have, or when the share of the
nodes that the trials held has cost `max_usd`. It leaves `best.yaml` for `pipelines.finetune`,
`trials.png`, and a run in MLflow with one child for each trial. The same command with the same
`--run-name` goes on where it stopped. The last line on standard output is one JSON object; when no
trial got anywhere there is one sentence on standard error and the exit code is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from factory import config as factory_config
from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.config.pools import POOL_LABEL
from factory.training import dataset, estimate, search_plot, share, trial
from factory.training.config import load_as
from factory.training.errors import TrainingError
from factory.training.run import RunFolder
from factory.training.screening import asked
from factory.training.search import (
    Node,
    Outcome,
    SearchConfig,
    Trial,
    best,
    cost,
    described,
    draw,
    rate,
    status,
    table,
)
from factory.training.tracking import Tracked
from factory.training.train import label_selector
from pipelines.closing import GOES_ON, closed
from pipelines.finetune import (
    Corpus,
    Job,
    Say,
    add_flags,
    find_base,
    find_data,
    foresee,
    ray_cluster,
    run_name,
    to_stderr,
)

DEFAULT_CONFIG = Path(__file__).with_name("tune.yaml")


def plan(
    settings: Settings, config: SearchConfig, name: str | None = None
) -> tuple[RunFolder, list[tuple[Trial, Job]]]:
    """The search's folder, and every trial with its model and data, found and checked.

    Raises `TrainingError`, `DatasetError` or `CatalogError`.
    """
    if config.pool is not None and config.pool not in settings.pools:
        known = ", ".join(sorted(settings.pools))
        raise TrainingError(f"there is no pool '{config.pool}'; known are {known}")
    store = ObjectStore(settings.objects)
    base = find_base(settings, store, config.model)
    trials = draw(config)
    names = {config.dataset, *(each.config.dataset for each in trials)}
    found = {each: find_data(store, each) for each in names}
    for other in names - {config.dataset}:
        _apart(found[config.dataset], found[other])
    label = config.adapter_name or found[config.dataset].name
    name = name or os.environ.get("FACTORY_JOB_ID") or run_name(f"{label}-tune", datetime.now(UTC))
    run = RunFolder.named(settings.home / "runs", name)
    return run, [
        (each, Job(each.config, base, found[each.config.dataset], RunFolder(run.root / each.name)))
        for each in trials
    ]


def _apart(judge: Corpus, other: Corpus) -> None:
    """Raises `TrainingError` where a trial would learn what all trials are judged by."""
    judged = {
        asked(example) for example in dataset.read(judge.folder, ["validation"])["validation"]
    }
    learned = dataset.read(other.folder, ["train"])["train"]
    if shared := [example.id for example in learned if asked(example) in judged]:
        raise TrainingError(
            f"{len(shared)} examples that the data set in '{other.folder}' trains on are in the "
            f"validation split of '{judge.folder}', such as '{shared[0]}'; take them out, trials "
            "are judged by that split"
        )


def dry_run(
    settings: Settings, config: SearchConfig, name: str | None = None, say: Say = to_stderr
) -> dict[str, Any]:
    """Say what a search would try and take at most, and start nothing. Raises as `search` does."""
    _, jobs = plan(settings, config, name)
    totals: dict[str, int] = {}
    shown = []
    for each, job in jobs:
        found = foresee(settings, job)
        cheapest = found.places[0]
        say(
            f"{each.name}  {described(each.params)}: {found.shape.trainable:,} trainable, "
            f"{estimate.words(found.seconds)}, {estimate.dollars(cheapest.nusd)} on {cheapest.pool}"
        )
        for place in found.places:
            totals[place.pool] = totals.get(place.pool, 0) + place.nusd
        shown.append({"trial": each.number, "params": dict(each.params), **estimate.plain(found)})
    for pool, nusd in sorted(totals.items(), key=lambda item: (item[1], item[0])):
        say(f"at most {estimate.dollars(nusd)} on {pool}, were no trial stopped early")
    say(f"the search stops at {estimate.dollars(config.budget_nusd)}")
    return {
        "dry_run": True,
        **jobs[0][1].origin,
        "trials": shown,
        "cost_nusd": totals,
        "budget_nusd": config.budget_nusd,
    }


def search(
    settings: Settings, config: SearchConfig, name: str | None = None, say: Say = to_stderr
) -> dict[str, Any]:
    """Run the trials, write what was best, and return the closing JSON object.

    Raises `TrainingError`, `DatasetError` or `CatalogError`.
    """
    run, jobs = plan(settings, config, name)
    run.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.root / "lock", timeout=0):
            _same(run, config, jobs)
            say(
                f"search {run.root.name}: {len(jobs)} trials of {config.max_steps} steps, at most "
                f"{estimate.dollars(config.budget_nusd)}, under {run.root}"
            )
            return _search(settings, config, run, jobs, say)
    except Timeout as error:
        raise TrainingError(
            f"search '{run.root.name}' is going on in another process; wait for it or choose "
            "another --run-name"
        ) from error


def _same(run: RunFolder, config: SearchConfig, jobs: Sequence[tuple[Trial, Job]]) -> None:
    """Raises `TrainingError` where the folder belongs to another run or search."""
    parts = [config.model_dump_json(), *(job.corpus.hash for _, job in jobs)]
    parts.append(jobs[0][1].base.revision)
    mine = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    note = run.root / "search"
    if note.exists() and note.read_text("utf-8") == mine:
        return
    if note.exists() or run.curve.exists():
        raise TrainingError(
            f"run '{run.root.name}' was started with other arguments, other data or another "
            "model; give the same ones to resume it, or another --run-name"
        )
    note.write_text(mine, "utf-8")


def _search(
    settings: Settings,
    config: SearchConfig,
    run: RunFolder,
    jobs: Sequence[tuple[Trial, Job]],
    say: Say,
) -> dict[str, Any]:
    first = jobs[0][1]
    experiment = config.adapter_name or first.corpus.name
    shown = config.model_dump(mode="json", exclude={"space"})
    # MLflow takes 6,000 characters of a value; a space may be longer.
    params = {**shown, "space": json.dumps(config.model_dump(mode="json")["space"])[:6000]}
    tracked = Tracked.start(settings.mlflow_uri, experiment, run, params, first.origin)
    try:
        with ray_cluster():
            pool, nusd_per_hour = _run(settings, config, run, jobs, say)
        outcomes, stopped = collect(run, config, [each for each, _ in jobs], nusd_per_hour)
        _track(settings, experiment, tracked, jobs, outcomes)
        search_plot.draw(outcomes, run.root / "trials.png")
        try:
            chosen = best(outcomes)
        except TrainingError:
            for text in table(outcomes):
                say(text)
            raise
    except BaseException as error:
        tracked.fail(str(error) or type(error).__name__)
        raise
    for text in table(outcomes, chosen.number):
        say(text)
    say(stopped)
    written = run.root / "best.yaml"
    write_best(written, config, jobs[chosen.number][0], chosen)
    say(f"python -m pipelines.finetune --config {written}")
    total = sum(item.nusd for item in outcomes)
    closing = {
        "best_trial": chosen.number,
        "validation_loss": chosen.loss or 0.0,
        "cost_nusd": total,
    }
    tracked.finish(closing, {"stopped": stopped})
    return {
        "run_name": run.root.name,
        "run_id": tracked.run_id,
        **first.origin,
        "best": plain(chosen),
        "config": str(written),
        "plot": str(run.root / "trials.png"),
        "trials": [plain(item) for item in outcomes],
        "pool": pool,
        "cost_nusd": total,
        "budget_nusd": config.budget_nusd,
        "stopped": stopped,
    }


def _run(
    settings: Settings,
    config: SearchConfig,
    run: RunFolder,
    jobs: Sequence[tuple[Trial, Job]],
    say: Say,
) -> tuple[str, int]:
    """Run the trials on Ray Tune to their end; returns the pool and price of what one holds."""
    import ray

    # Ctrl-C ends this process like any other; Ray Tune would return as if it were done.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    from factory.training.spending import Spending, Till

    size, selector = share.queued(os.environ), label_selector(os.environ) or {}
    cpus = config.cpus_per_worker or 1
    gpus = 1 if share.free_gpus(size, ray.cluster_resources().get("GPU", 0)) >= 1 else 0
    at_once = share.trials_at_once(cpus, gpus, config.max_concurrent_trials, size)
    default = config.pool or next(iter(settings.pools))
    nodes = [
        Node(
            node["Labels"].get(POOL_LABEL, default),
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
        )
        for node in ray.nodes()
        if node["Alive"] and selector.items() <= node["Labels"].items()
    ]
    nodes = [node for node in nodes if node.cpus >= cpus and node.gpus >= gpus]
    if not nodes:
        raise TrainingError(f"no node has {cpus} CPUs for a trial; lower cpus_per_worker")
    prices = {name: pool.nusd_per_hour for name, pool in settings.pools.items()}
    pool, nusd_per_hour = rate(nodes, prices, cpus, gpus)
    say(f"a trial holds {cpus} CPUs at {estimate.dollars(nusd_per_hour)} an hour in pool {pool}")

    judge = find_data(ObjectStore(settings.objects), config.dataset).folder
    for each, job in jobs:
        task = job.task(cpus)
        trial.write(run.root, each.name, task, judge)
    held = tune.PlacementGroupFactory(
        [{"CPU": cpus, "GPU": gpus}], bundle_label_selector=[selector] if selector else None
    )
    trainable = tune.with_resources(trial.run, held)
    storage = run.root / "ray"
    if tune.Tuner.can_restore(str(storage / "search")):
        say("going on with the trials that have not ended")
        tuner = tune.Tuner.restore(str(storage / "search"), trainable)
    else:
        spending = Spending(
            run.root,
            trials=len(jobs),
            nusd_per_hour=nusd_per_hour,
            budget_nusd=config.budget_nusd,
            say=say,
        )
        names = [each.name for each, _ in jobs]
        tuner = tune.Tuner(
            trainable,
            param_space={"root": str(run.root), "trial": tune.grid_search(names)},
            tune_config=tune.TuneConfig(
                metric="validation_loss",
                mode="min",
                search_alg=BasicVariantGenerator(max_concurrent=at_once),
                scheduler=ASHAScheduler(
                    time_attr="step",
                    max_t=config.max_steps,
                    grace_period=config.grace_period,
                    reduction_factor=config.reduction_factor,
                ),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                stop=Till(spending),
                callbacks=[spending],
                verbose=0,
            ),
        )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the closing object
        tuner.fit()
    return pool, nusd_per_hour


def collect(
    run: RunFolder, config: SearchConfig, trials: Sequence[Trial], nusd_per_hour: int
) -> tuple[list[Outcome], str]:
    """What the trials came to, from the search's folder, and why it ended."""
    kept = json.loads((run.root / "spending.json").read_text("utf-8"))
    assert config.max_steps is not None
    outcomes = []
    for each in trials:
        end = kept["ended"].get(each.name, {"failure": "", "out_of_money": bool(kept["stopped"])})
        seconds = kept["seconds"].get(each.name, 0.0)
        curve = trial.curve(run.root / each.name)
        outcomes.append(
            Outcome(
                number=each.number,
                params=each.params,
                status=status(
                    begun=seconds > 0,
                    failed=bool(end["failure"]),
                    steps=curve[-1][0] if curve else 0,
                    max_steps=config.max_steps,
                    out_of_money=end["out_of_money"],
                ),
                curve=curve,
                seconds=seconds,
                nusd=cost(seconds, 1.0, nusd_per_hour),
                reason=end["failure"],
            )
        )
    return outcomes, kept["stopped"] or "all trials have ended"


def _track(
    settings: Settings,
    experiment: str,
    parent: Tracked,
    jobs: Sequence[tuple[Trial, Job]],
    outcomes: Sequence[Outcome],
) -> None:
    """One run in MLflow for every trial that began, under the search's."""
    for (_, job), item in zip(jobs, outcomes, strict=True):
        if item.status == "not begun":
            continue
        tags = {**job.origin, "mlflow.parentRunId": parent.run_id, "status": item.status}
        child = Tracked.start(
            settings.mlflow_uri, experiment, job.run, job.config.model_dump(), tags
        )
        child.take(job.run.points())
        for step, loss in item.curve:
            child.client.log_metric(child.run_id, "validation_loss", loss, step=step)
        if item.status == "failed":
            child.fail(item.reason)
        else:
            child.finish({"cost_nusd": item.nusd, "seconds": item.seconds}, {})


def plain(item: Outcome) -> dict[str, Any]:
    """A trial as plain values, money in nano-dollars."""
    return {
        "trial": item.number,
        "params": dict(item.params),
        "status": item.status,
        "steps": item.steps,
        "validation_loss": item.loss,
        "seconds": round(item.seconds, 1),
        "cost_nusd": item.nusd,
        **({"reason": item.reason} if item.reason else {}),
    }


def write_best(path: Path, config: SearchConfig, chosen: Trial, outcome: Outcome) -> None:
    """The best trial's arguments as a job config, whole or not at all."""
    values: Mapping[str, Any] = chosen.config.model_dump(mode="json")
    text = (
        f"# Trial {chosen.number} of {config.num_samples}: {described(chosen.params)}\n"
        f"# validation loss {outcome.loss:.4f} after {outcome.steps} steps\n"
    )
    draft = path.with_suffix(".draft")
    draft.write_text(text + yaml.safe_dump(dict(values), sort_keys=False), "utf-8")
    draft.replace(path)


def parser() -> argparse.ArgumentParser:
    """Flags: one for every field of `SearchConfig`, under both spellings of its name."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="search config, YAML")
    result.add_argument("--run-name", help="name of the search; an existing one is resumed")
    result.add_argument("--dry-run", action="store_true", help="show the trials and stop")
    result.add_argument("--schema", action="store_true", help="print the arguments' JSON Schema")
    add_flags(result, SearchConfig)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = vars(parser().parse_args(argv))
    path, name = given.pop("config"), given.pop("run_name")
    dry, schema = given.pop("dry_run"), given.pop("schema")
    if schema:
        print(json.dumps(SearchConfig.model_json_schema(), indent=2))
        return 0
    logging.getLogger("mlflow").setLevel(logging.WARNING)

    def job() -> dict[str, Any]:
        config, settings = load_as(SearchConfig, path, given), factory_config.load()
        return dry_run(settings, config, name) if dry else search(settings, config, name)

    return closed(job, interrupted=GOES_ON)


if __name__ == "__main__":
    raise SystemExit(main())

"""A tuning run on Ray Train: what the driver hands over, what a worker does with it.

    task = Task(config=config, model=folder, base_name="smollm2-135m", revision="0a1b…", ...)
    summary = launch(task, cpus=2)      # inside an initialised Ray

Ray Train V2 starts `num_workers` workers, joins them by torch.distributed, and each runs the same
loop. Results come back through the run's folder, which must be on storage that driver and
workers share.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factory.training import dataset
from factory.training.chat import encode_all
from factory.training.config import TrainConfig, check, check_as
from factory.training.dataset import DatasetError
from factory.training.errors import TrainingError
from factory.training.loop import Data, Peers, Summary, fit
from factory.training.run import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Everything a worker needs, as plain values."""

    config: dict[str, Any]
    """`TrainConfig` as a dictionary."""
    model: str
    """Folder with the base model's weights and tokenizer."""
    base_name: str
    """What the adapter calls its base."""
    revision: str
    """The base's content hash or commit, pinned in the adapter."""
    data: str
    """Folder with train.jsonl and validation.jsonl."""
    run: str
    """The run's folder."""
    fingerprint: str
    """Hash over arguments, data and base: what a resumed run must have in common."""
    threads: int
    """CPU threads of one worker."""


def load_data(folder: Path, tokenizer: Any, config: TrainConfig) -> Data:
    """Encoded train and validation splits.

    Raises `TrainingError` or `DatasetError` for a split that is missing or empty, a label of the
    card that the train split never shows, and an example that is too long.
    """
    split = dataset.read(folder, ("train", "validation"))
    known = dataset.read_card(folder).get("labels") or {}
    if missing := sorted(set(known) - {example.label for example in split["train"]}):
        raise TrainingError(
            f"label '{missing[0]}' of the data set in '{folder}' never occurs in its train "
            "split; add examples of it or make the data set without it"
        )
    encoded = {
        name: encode_all(tokenizer, examples, config.max_length, config.drop_long)
        for name, examples in split.items()
    }
    return Data(train=encoded["train"], validation=encoded["validation"])


def run_task(task: Task, peers: Peers) -> Summary:
    """One worker's whole work. Raises `TrainingError` or `DatasetError`."""
    import torch
    from transformers.utils import logging

    from factory.training import adapter, model

    logging.disable_progress_bar()
    torch.set_num_threads(task.threads)
    config = check(task.config, "the job")
    tuned, tokenizer = model.build(task.model, config)
    data = load_data(Path(task.data), tokenizer, config)
    run = RunFolder(Path(task.run))
    summary = fit(config, tuned, data, run, task.fingerprint, peers)
    if peers.rank == 0:
        if config.use_peft:
            adapter.export(tuned, run, base_name=task.base_name, revision=task.revision)
        else:
            model.export(tuned, Path(task.model), run)
    return summary


def ray_peers() -> Peers:
    """The workers of the Ray Train run this process is part of."""
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    context = ray.train.get_context()
    device = ray.train.torch.get_device()

    def total(tensor: torch.Tensor) -> torch.Tensor:
        shared = tensor.to(device)
        dist.all_reduce(shared)
        return shared.cpu()

    def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
        shared = tensor.to(device)
        parts = [torch.empty_like(shared) for _ in range(context.get_world_size())]
        dist.all_gather(parts, shared)
        return [part.cpu() for part in parts]

    if context.get_world_size() == 1:
        return Peers(distribute=ray.train.torch.prepare_model)
    return Peers(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        sum=total,
        gather=gather,
        distribute=ray.train.torch.prepare_model,
    )


def _worker(values: dict[str, Any]) -> dict[str, Any]:
    return asdict(run_task(Task(**values), ray_peers()))


def launch(
    task: Task,
    cpus: int,
    gpu: bool = False,
    work: Callable[[dict[str, Any]], dict[str, Any]] = _worker,
    kind: type[TrainConfig] = TrainConfig,
) -> Summary:
    """Run `task` on Ray Train with `cpus` cores a worker; Ray must be initialised.

    `work` is what a worker does, given the task's fields; `kind` is what its arguments are.

    Raises the worker's own `TrainingError` or `DatasetError`, or a `TrainingError` that carries
    the last line of any other failure.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    config = check_as(kind, task.config, "the job")
    storage = Path(task.run) / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    trainer = TorchTrainer(
        work,
        train_loop_config=asdict(task),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(name="train", storage_path=str(storage)),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    return Summary(**result.return_value)


def _cause(error: Exception) -> Exception:
    """The sentence a worker failed with, rather than Ray's account of it."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, TrainingError | DatasetError):
            return cause
    for failure in failures.values():
        last = str(failure).strip().splitlines()[-1]
        return TrainingError(f"a training worker failed: {last}")
    return TrainingError(f"training failed: {str(error).strip().splitlines()[-1]}")

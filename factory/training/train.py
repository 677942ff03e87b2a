"""A tuning run on Ray Train: what the driver hands over, what a worker does with it.

    task = Task(config=config, model=folder, base_name="smollm2-135m", revision="0a1b…", ...)
    summary = launch(task, cpus=2)      # inside an initialised Ray

Ray Train V2 starts `num_workers` workers, joins them by torch.distributed, and each runs the same
loop. Results come back through the run's folder, which must be on storage that driver and
workers share.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError

from factory.training import checkpoint, dataset
from factory.training.chat import encode_all
from factory.training.config import TrainConfig, check, check_as
from factory.training.dataset import DatasetError
from factory.training.errors import Interrupted, TrainingError
from factory.training.loop import Data, Peers, Summary, fit, validate
from factory.training.recovery import Ended, decide
from factory.training.run import RunFolder
from factory.training.worker import enter

_PROMPT = {
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.4",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
"""Ray Train's own intervals, shortened: a notice may leave only seconds."""

_NOTICED_S = 3.0
"""How long a cluster may take to notice that the node of a dead worker is down."""


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
    teacher: str | None = None
    """Folder of a teacher's weights that a worker must have in memory."""


Work = Callable[[Task, Peers], Summary]
"""What every worker does with a task; importable by name."""


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
    for name, examples in split.items():
        odd = [item for item in examples if known and item.label and item.label not in known]
        if odd:
            raise TrainingError(
                f"example '{odd[0].id}' of the {name} split in '{folder}' has the label "
                f"'{odd[0].label}', which the data set's card does not know; mend either"
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
    begun = peers.since or time.monotonic()
    tuned, tokenizer = model.build(task.model, config)
    data = load_data(Path(task.data), tokenizer, config)
    peers = replace(peers, load_s=time.monotonic() - begun)
    run = RunFolder(Path(task.run))
    summary = fit(config, tuned, data, run, task.fingerprint, peers)
    if peers.rank == 0:
        if config.zero_stage:
            tuned, summary = gathered(task, config, data, run, summary)
        if config.use_peft:
            adapter.export(tuned, run, base_name=task.base_name, revision=task.revision)
        else:
            model.export(tuned, Path(task.model), run)
    return summary


def gathered(
    task: Task, config: TrainConfig, data: Data, run: RunFolder, summary: Summary
) -> tuple[Any, Summary]:
    """A model that was spread over workers, whole from its last checkpoint, and scored."""
    from factory.training import model

    state, _ = checkpoint.newest(run.checkpoints)
    if state is None:
        raise TrainingError(f"the run's last checkpoint under '{run.checkpoints}' is gone")
    whole, _ = model.build(task.model, config)
    whole.load_state_dict(dict(state.weights), strict=False)
    loss, accuracy = validate(config, whole, data.validation)
    return whole, replace(summary, validation_loss=loss, validation_accuracy=accuracy)


def ray_peers() -> Peers:
    """The workers of the Ray Train run this process is part of."""
    import ray
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

    def notice() -> str | None:
        info = ray.train.get_preemption_info()
        if info is None:
            return None
        return f"node {min(info.preempted_node_to_ranks)[:8]} is being taken away"

    peers = Peers(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        distribute=ray.train.torch.prepare_model,
        notice=notice,
        place=ray.get_runtime_context().get_node_id(),
    )
    return peers if peers.size == 1 else replace(peers, sum=total, gather=gather)


def attend_to(values: dict[str, Any], work: Work, begun: float) -> dict[str, Any]:
    """A worker's start: `work` on the task of these fields; its process began at `begun`."""
    try:
        return {"summary": asdict(work(Task(**values), replace(ray_peers(), since=begun)))}
    except Interrupted as left:
        return {"left": left.reason, "step": left.step}


def label_selector(env: Mapping[str, str]) -> dict[str, str] | None:
    """The nodes the job queue chose for the workers, in Ray's form; None leaves it to Ray.

    Raises `TrainingError` when the variable holds anything else.
    """
    given = env.get("FACTORY_LABEL_SELECTOR")
    if not given:
        return None
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise TrainingError(
            f"FACTORY_LABEL_SELECTOR is {given!r}, not a JSON object of labels; unset it"
        )
    return found


def launch(
    task: Task,
    cpus: int,
    gpu: bool = False,
    *,
    work: Work = run_task,
    kind: type[TrainConfig] = TrainConfig,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Run `work` on Ray Train with `cpus` cores a worker until it is done; Ray must be initialised.

    `work` is what a worker does with the task; `kind` is what its arguments are.

    A run whose node is taken away or whose worker dies starts again from its newest checkpoint,
    as `recovery.decide` allows; `say` is told. Raises the worker's own `TrainingError` or
    `DatasetError`, or a `TrainingError` with a diagnosis when starting again does not help.
    """
    config = check_as(kind, task.config, "the job")
    history: list[Ended] = []
    silent = ""
    while True:
        free = _free()
        leaving = to_leave(_draining(), silent, free, cpus)
        room = [free[node] for node in free.keys() - set(leaving)]
        workers = choose_workers(config, cpus, room)
        ended = _start(task, workers, cpus, gpu, work, leaving)
        if isinstance(ended, Summary):
            return ended
        history.append(ended)
        starts = RunFolder(Path(task.run)).starts()
        silent = starts[-1]["place"] if starts and ended.kind == "lost" else ""
        decision = decide(history, config.max_failures, config.max_preemption_failures)
        if not decision.go_on:
            raise TrainingError(decision.reason)
        say(decision.reason)


def choose_workers(config: TrainConfig, cpus: int, free: Sequence[float]) -> int:
    """Workers of the next start: as many as `free` CPUs of each node have room for, within bounds.

    Where there is no room for the fewest, the start waits for it.
    """
    room = sum(int(node) // cpus for node in free)
    return min(config.most_workers, max(config.least_workers, room))


def free_cpus() -> list[float]:
    """CPUs that are free on each living node that may have a worker; Ray must be initialised."""
    import ray

    wanted = (label_selector(os.environ) or {}).items()
    fitting = {node["NodeID"] for node in ray.nodes() if wanted <= node["Labels"].items()}
    return [free for node, free in _free().items() if node in fitting]


def _free() -> dict[str, float]:
    """CPUs that are free on each living node."""
    from ray._private.state import available_resources_per_node

    found = available_resources_per_node()
    return {node: float(free.get("CPU", 0)) for node, free in found.items()}


def _start(
    task: Task, workers: int, cpus: int, gpu: bool, work: Work, leaving: Sequence[str]
) -> Summary | Ended:
    """One start of the run on a fresh group of workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from factory.training.backend import Prompt

    for name, value in _PROMPT.items():
        os.environ.setdefault(name, value)
    run = RunFolder(Path(task.run))
    storage = run.root / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    trainer = TorchTrainer(
        enter,
        train_loop_config={"task": asdict(task), "work": f"{work.__module__}:{work.__name__}"},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
            label_selector={**(label_selector(os.environ) or {}), **staying(leaving)} or None,
        ),
        torch_config=Prompt(),
        run_config=RunConfig(name="train", storage_path=str(storage)),
    )
    nodes = _alive()
    try:
        with _own_interrupt():
            value = trainer.fit().return_value
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, TrainingError | DatasetError):
            raise cause from error
        step = checkpoint.newest_step(run.checkpoints)
        lost = isinstance(cause, ActorUnavailableError) or _gone(nodes)
        return Ended("lost" if lost else "failed", step, _last(cause))
    if "left" in value:
        return Ended("left", value["step"], value["left"])
    return Summary(**value["summary"])


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ray Train's handler of Ctrl-C aborts a run that may be over: give the old one back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def staying(leaving: Sequence[str]) -> dict[str, str]:
    """Ray's label selector that keeps workers off these nodes; empty where there are none."""
    return {"ray.io/node-id": f"!in({','.join(sorted(leaving))})"} if leaving else {}


def to_leave(
    draining: Sequence[str], suspect: str, free: Mapping[str, float], cpus: int
) -> list[str]:
    """Nodes the next start keeps off: those told to go, and the one whose worker fell silent.

    `free` are the CPUs of each living node. The silent one may only have lost a worker, so it is
    kept off only where another node has room.
    """
    others = {node for node, room in free.items() if room >= cpus} - {*draining, suspect}
    return sorted({*draining, *([suspect] if suspect and others else [])})


def _draining() -> list[str]:
    """Nodes that are up and have been told to go."""
    from ray._private.state import state

    return [node for node in state.get_draining_nodes() or {} if node in _alive()]


def _alive() -> set[str]:
    """Nodes of the cluster that are up."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _gone(nodes: set[str]) -> bool:
    """Whether one of the nodes is down; the cluster is given a moment to notice."""
    deadline = time.monotonic() + _NOTICED_S
    while nodes <= _alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _cause(error: Exception) -> BaseException:
    """What a worker failed with, rather than Ray's account of it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    causes = [
        getattr(failure, "health_check_failure", getattr(failure, "_base_exc", failure))
        for failure in failures
    ]
    for wanted in (TrainingError, DatasetError, RayActorError):
        for cause in causes:
            if isinstance(cause, wanted):
                return cause
    return causes[0] if causes else error


def _last(error: BaseException) -> str:
    """The last line of an error that is not ours."""
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__

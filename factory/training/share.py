"""What a run may take of a cluster: what its job was queued with, else what is free.

    size = queued(os.environ)                       # None outside the job queue
    cpus = cpus_of_worker(config, free_cpus(), size)
    gpu = takes_gpus(config, 4.0, size)

The queue counts a job's size in quotas and charges it, so a run that the queue started takes that
size and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.training.config import TrainConfig
from factory.training.errors import TrainingError

SIZE = "FACTORY_JOB_SIZE"
"""Variable with JSON of what the job was queued with: `{"workers": 1, "cpus": 2.0, "gpus": 0}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Equal parts of a job, and what one of them may take."""

    workers: int
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return _of(self.workers, f"{self.cpus:g} CPUs{gpus}")


def queued(env: Mapping[str, str]) -> Size | None:
    """What the job queue counts this job as; None where it did not start this process.

    Raises `TrainingError` when the variable holds anything else.
    """
    given = env.get(SIZE)
    if not given:
        return None
    try:
        found = json.loads(given)
        return Size(
            workers=int(found["workers"]), cpus=float(found["cpus"]), gpus=float(found["gpus"])
        )
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(
            f"{SIZE} is {given!r}, not a JSON object of workers, cpus and gpus; unset it"
        ) from error


def cpus_of_worker(config: TrainConfig, free: Sequence[float], size: Size | None) -> int:
    """CPU cores of one worker: as configured, else the most with which all workers find room.

    `free` are the CPUs of each node that may have them; at least 1. A job of the queue has as room
    what it was queued with. Raises `TrainingError` when that is not enough.
    """
    workers = config.most_workers
    room = list(free) if size is None else [size.cpus] * size.workers
    cpus = config.cpus_per_worker or _most(workers, room)
    if size is not None and _fitting(cpus, room) < workers:
        raise TrainingError(
            f"the run takes {_of(workers, f'{cpus} CPUs')} and its job was queued with {size}; "
            f"submit it with `--workers {workers} --cpus {cpus}`, or lower num_workers or "
            "cpus_per_worker"
        )
    return cpus


def takes_gpus(config: TrainConfig, free: float, size: Size | None) -> bool:
    """Whether each worker gets a GPU; `free` are the cluster's free ones."""
    return free_gpus(size, free) >= config.most_workers


def free_gpus(size: Size | None, free: float) -> float:
    """Those of the cluster's free GPUs that the job may take."""
    return free if size is None else min(free, size.workers * int(size.gpus))


def trials_at_once(cpus: int, gpus: int, wanted: int | None, size: Size | None) -> int:
    """Trials of a search that run at the same time; 0 is no limit.

    Raises `TrainingError` when not even one has room in what the job was queued with.
    """
    if size is None:
        return wanted or 0
    each = int(size.cpus) // cpus
    if gpus:
        each = min(each, int(size.gpus) // gpus)
    room = size.workers * each
    if room < 1:
        trial = f"{cpus} CPUs and {gpus} GPUs" if gpus else f"{cpus} CPUs"
        raise TrainingError(
            f"a trial takes {trial} and the search was queued with {size}; submit it with more, "
            "or lower cpus_per_worker"
        )
    return min(wanted or room, room)


def _most(workers: int, room: Sequence[float]) -> int:
    for cpus in range(int(max(room, default=1)), 1, -1):
        if _fitting(cpus, room) >= workers:
            return cpus
    return 1


def _fitting(cpus: int, room: Sequence[float]) -> int:
    return sum(int(node) // cpus for node in room)


def _of(workers: int, each: str) -> str:
    return f"{workers} worker of {each}" if workers == 1 else f"{workers} workers of {each} each"

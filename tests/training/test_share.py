"""What a run takes of a cluster, and that a queued one takes what it is counted as."""

from __future__ import annotations

import json

import pytest

from factory.cluster.queue.runner import SIZE
from factory.training import share
from factory.training.config import TrainConfig
from factory.training.errors import TrainingError
from factory.training.share import Size


def size(workers: int, cpus: float, gpus: float = 0) -> Size:
    return Size(workers=workers, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("free", "workers", "cpus"),
    [
        ([2.0], 1, 2),
        ([2.0], 2, 1),
        ([1.0], 2, 1),
        ([0.0], 1, 1),
        ([], 1, 1),
        ([7.5], 2, 3),
        ([1.0, 1.0, 1.0], 1, 1),  # a worker is on one node
        ([8.0, 4.0], 2, 4),
        ([8.0, 2.0], 3, 2),
    ],
)
def test_workers_share_what_is_free(free: list[float], workers: int, cpus: int) -> None:
    assert share.cpus_of_worker(TrainConfig(num_workers=workers), free, None) == cpus
    assert share.cpus_of_worker(TrainConfig(cpus_per_worker=4), free, None) == 4


@pytest.mark.parametrize(
    ("queued", "workers", "cpus"),
    [
        (size(1, 1), 1, 1),
        (size(1, 6), 1, 6),
        (size(1, 6), 2, 3),
        (size(2, 3), 2, 3),
        (size(2, 3), 1, 3),
        (size(1, 2.5), 1, 2),
    ],
)
def test_a_queued_run_takes_its_size_whatever_is_free(
    queued: Size, workers: int, cpus: int
) -> None:
    for free in ([], [1.0], [64.0]):
        assert share.cpus_of_worker(TrainConfig(num_workers=workers), free, queued) == cpus


@pytest.mark.parametrize(
    ("queued", "config", "said"),
    [
        (size(1, 0), {}, "takes 1 worker of 1 CPUs and its job was queued with 1 worker of 0 CPUs"),
        (size(1, 0.5), {}, "--workers 1 --cpus 1"),
        (size(1, 1), {"num_workers": 2}, "--workers 2 --cpus 1"),
        (size(1, 1), {"num_workers": (1, 2)}, "--workers 2 --cpus 1"),
        (size(2, 2), {"cpus_per_worker": 3}, "queued with 2 workers of 2 CPUs each"),
        (size(3, 1), {"cpus_per_worker": 2}, "--workers 1 --cpus 2"),  # parts are on nodes
    ],
)
def test_a_run_larger_than_its_job_is_refused(
    queued: Size, config: dict[str, object], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        share.cpus_of_worker(TrainConfig.model_validate(config), [64.0], queued)


def test_gpus_are_taken_only_by_a_job_that_is_counted_with_them() -> None:
    assert share.takes_gpus(TrainConfig(), 4, None)
    assert not share.takes_gpus(TrainConfig(), 4, size(1, 1))
    assert share.takes_gpus(TrainConfig(), 4, size(1, 1, gpus=1))
    assert not share.takes_gpus(TrainConfig(num_workers=2), 4, size(1, 2, gpus=1))
    assert not share.takes_gpus(TrainConfig(), 0, size(1, 1, gpus=1))


@pytest.mark.parametrize(
    ("queued", "wanted", "at_once"),
    [
        (None, None, 0),
        (None, 3, 3),
        (size(1, 1), None, 1),
        (size(1, 4), None, 2),
        (size(3, 5), None, 6),
        (size(3, 5), 4, 4),
        (size(1, 4), 9, 2),
    ],
)
def test_as_many_trials_as_the_search_is_counted_as(
    queued: Size | None, wanted: int | None, at_once: int
) -> None:
    cpus = 1 if queued == size(1, 1) else 2
    assert share.trials_at_once(cpus, 0, wanted, queued) == at_once


def test_a_search_that_holds_no_trial_is_refused() -> None:
    with pytest.raises(TrainingError, match="a trial takes 2 CPUs and the search was queued with"):
        share.trials_at_once(2, 0, None, size(4, 1))
    with pytest.raises(TrainingError, match="2 CPUs and 1 GPUs"):
        share.trials_at_once(2, 1, None, size(4, 2))


def test_the_queue_says_the_size() -> None:
    assert share.SIZE == SIZE
    assert share.queued({}) is None
    given = {"workers": 2, "cpus": 1.5, "gpus": 0}
    assert share.queued({SIZE: json.dumps(given)}) == size(2, 1.5)


@pytest.mark.parametrize("given", ["2", "{", "[]", '{"workers": 1}', '{"workers": "x"}', "null"])
def test_a_size_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(TrainingError, match=r"FACTORY_JOB_SIZE is .* unset it"):
        share.queued({SIZE: given})

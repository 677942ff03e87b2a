import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training import train
from factory.training.config import check
from factory.training.loop import Peers
from factory.training.run import RunFolder
from factory.training.train import Task, choose_workers, staying, to_leave
from factory.training.worker import enter
from tests.training import tiny

NODES = st.sampled_from("abcd")


def test_a_node_that_is_told_to_go_is_kept_off() -> None:
    assert to_leave(["a"], "", {"a": 4, "b": 4}, cpus=1) == ["a"]
    assert staying(["b", "a"]) == {"ray.io/node-id": "!in(a,b)"}
    assert staying([]) == {}


def test_a_silent_node_is_kept_off_only_where_another_has_room() -> None:
    assert to_leave([], "a", {"a": 4, "b": 4}, cpus=1) == ["a"]
    assert to_leave([], "a", {"a": 4, "b": 0}, cpus=1) == []
    assert to_leave(["b"], "a", {"a": 4, "b": 4}, cpus=1) == ["b"]


@given(
    draining=st.lists(NODES, unique=True),
    suspect=NODES | st.just(""),
    free=st.dictionaries(NODES, st.floats(0, 8)),
)
def test_a_start_never_keeps_off_every_node_on_a_suspicion(
    draining: list[str], suspect: str, free: dict[str, float]
) -> None:
    left = to_leave(draining, suspect, free, cpus=1)
    assert set(draining) <= set(left)
    if suspect in set(left) - set(draining):
        assert any(room >= 1 for node, room in free.items() if node not in left)


def test_a_worker_enters_by_the_name_of_its_work(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = check({"bf16": False, "lora_r": 4, "max_steps": 3, "save_steps": 2}, "test")
    task = Task(
        config=config.model_dump(mode="json"),
        model=str(tiny_model),
        base_name="tiny",
        revision="abc",
        data=str(tiny.data(tmp_path / "data")),
        run=str(tmp_path / "run"),
        fingerprint="x",
        threads=1,
    )
    job: dict[str, Any] = {"task": asdict(task), "work": "factory.training.train:run_task"}
    monkeypatch.setattr(train, "ray_peers", Peers)
    assert enter(job)["summary"]["steps"] == 3
    monkeypatch.setattr(train, "ray_peers", lambda: Peers(notice=lambda: "node a goes"))
    again = {**job, "task": {**job["task"], "run": str(tmp_path / "other")}}
    assert enter(again) == {"left": "node a goes", "step": 1}
    assert RunFolder(tmp_path / "other").starts()[0]["load_s"] > 0


def test_as_many_workers_as_there_is_room_for() -> None:
    elastic = check({"num_workers": [2, 4]}, "test")
    assert choose_workers(elastic, 2, [4.0, 3.0]) == 3
    assert choose_workers(elastic, 1, [16.0]) == 4
    assert choose_workers(elastic, 1, [0.0]) == 2
    assert choose_workers(check({"num_workers": 3}, "test"), 1, [1.0]) == 3


def test_ctrl_c_is_ours_again_after_a_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    with train._own_interrupt():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before

"""Checkpoints through a full disk, a store elsewhere, and files that cannot be read."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factory.training import checkpoint, remote
from factory.training.checkpoint import Counters, State, Writer
from factory.training.errors import TrainingError


def state(step: int, size: int = 8) -> State:
    tensor = torch.full((size,), float(step))
    return State(
        counters=Counters(step=step, tokens=10 * step),
        fingerprint="abc",
        weights={"w": tensor},
        optimizer={"step.w": torch.tensor(float(step)), "exp_avg.w": tensor},
        rng={"0": torch.get_rng_state()},
    )


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)
    with full_disk(20_000), pytest.raises(TrainingError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path, state(2, size=100_000), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.counters == Counters(step=1, tokens=10)
    assert not damaged


def test_a_writer_tells_on_the_next_occasion_what_went_wrong(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=2)
    with full_disk(20_000):
        writer.write(state(1, size=100_000))
        with pytest.raises(TrainingError, match="free some space"):
            writer.flush()
    writer.write(state(2))
    writer.flush()
    writer.close()
    assert checkpoint.newest_step(tmp_path) == 2


def test_what_is_held_does_not_change_with_training() -> None:
    weights = {"w": torch.zeros(3)}
    kept = checkpoint.held(weights)
    weights["w"].add_(1)
    assert kept["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("broken", ["manifest.json", "state.json", "weights.safetensors"])
def test_an_unreadable_checkpoint_is_passed_over(tmp_path: Path, broken: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    (tmp_path / "step-00000002" / broken).write_bytes(b"\0")
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.counters.step == 1
    assert damaged[0].startswith("step-00000002")


def test_copies_elsewhere_bring_a_run_back(tmp_path: Path) -> None:
    url = (tmp_path / "store" / "run").as_uri()
    writer = Writer(tmp_path / "here", keep=2, url=url)
    for step in (1, 2, 3):
        writer.write(state(step))
    writer.flush()
    writer.close()
    assert remote.steps(url) == ["step-00000003", "step-00000002"]
    other = tmp_path / "other"
    assert checkpoint.fetch(other, url) == ()
    found, _ = checkpoint.newest(other)
    assert found is not None
    assert found.counters.step == 3
    assert torch.equal(found.weights["w"], state(3).weights["w"])
    assert [path.name for path in other.glob("step-*")] == ["step-00000003"]


def test_a_damaged_copy_falls_back_and_one_cut_short_is_not_seen(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    writer = Writer(tmp_path / "here", keep=3, url=url)
    for step in (1, 2, 3):
        writer.write(state(step))
    writer.flush()
    writer.close()
    (tmp_path / "store" / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "store" / "step-00000002" / "weights.safetensors").write_bytes(b"bad")
    (damaged,) = checkpoint.fetch(tmp_path / "other", url)
    assert "step-00000002: weights.safetensors is not what was written" in damaged
    found, _ = checkpoint.newest(tmp_path / "other")
    assert found is not None
    assert found.counters.step == 1


def test_what_is_newer_here_is_not_fetched(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    writer = Writer(tmp_path / "far", keep=2, url=url)
    writer.write(state(1))
    writer.flush()
    writer.close()
    checkpoint.save(tmp_path / "here", replace(state(5)), keep=2)
    checkpoint.fetch(tmp_path / "here", url)
    assert [path.name for path in (tmp_path / "here").glob("step-*")] == ["step-00000005"]


@pytest.mark.parametrize("url", ["nosuch://bucket/run", "file://not/absolute"])
def test_a_store_that_cannot_be_opened_is_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(TrainingError, match="checkpoint_url"):
        checkpoint.fetch(tmp_path, url)


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), keep=2)
    named = set(json.loads((path / "manifest.json").read_text()))
    assert named == {item.name for item in path.iterdir()} - {"manifest.json"}

"""Checkpoints of a run: everything a resumed run needs to go on as if nothing had happened.

    save(folder, state, keep=2)
    state, damaged = newest(folder, workers=1)     # the newest good one, or None

A checkpoint is a folder `step-000050` with the adapter, the optimizer's moments, the random state
of every worker, and the counters. It is written under another name and renamed when it is whole;
`manifest.json` has the sha256 of each file, and a folder that does not match is passed over.
Tensors are safetensors files: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from factory.training.errors import TrainingError

_MANIFEST = "manifest.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Where a run stands; the data position follows from `step`."""

    step: int = 0
    """Optimizer steps done."""
    elapsed: float = 0.0
    """Seconds trained, over all starts of the run."""
    tokens: int = 0
    """Tokens trained, padding not counted."""
    recent_loss: float = 0.0
    """Running mean of the training loss."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One checkpoint in memory."""

    counters: Counters
    fingerprint: str
    """What the run was started with; another one must not resume it."""
    adapter: Mapping[str, torch.Tensor] = field(repr=False)
    optimizer: Mapping[str, torch.Tensor] = field(repr=False)
    rng: Mapping[str, torch.Tensor] = field(repr=False)
    """Random state by worker rank."""


def moments(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """AdamW's state as flat tensors named `<moment>.<parameter>`."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in trained.items()
        for key in _MOMENTS
    }


def restore(
    state: State,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, torch.nn.Parameter],
    rank: int,
) -> None:
    """Put a checkpoint's tensors back into the model, the optimizer and the random generator."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.adapter[name])
            optimizer.state[parameter] = {
                key: state.optimizer[f"{key}.{name}"].to(
                    parameter.device if key != "step" else "cpu"
                )
                for key in _MOMENTS
            }
    torch.set_rng_state(state.rng[str(rank)])


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a checkpoint under `folder`, then remove all but the newest `keep`."""
    target = folder / f"step-{state.counters.step:08d}"
    draft = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for name in ("adapter", "optimizer", "rng"):
            tensors = {
                key: item.detach().cpu().clone() for key, item in getattr(state, name).items()
            }
            save_file(tensors, draft / f"{name}.safetensors")
        facts = {"counters": asdict(state.counters), "fingerprint": state.fingerprint}
        (draft / "state.json").write_text(json.dumps(facts, sort_keys=True), "utf-8")
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        (draft / _MANIFEST).write_text(json.dumps(digests, sort_keys=True), "utf-8")
        for path in draft.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise TrainingError(
            f"cannot write the checkpoint '{target}': {error}; free some space and run again"
        ) from error
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path, workers: int) -> tuple[State | None, tuple[str, ...]]:
    """The newest checkpoint that is whole, or None, and what is wrong with the newer ones."""
    damaged: list[str] = []
    for path in _folders(folder):
        try:
            state = _load(path)
            if missing := {str(rank) for rank in range(workers)} - set(state.rng):
                raise ValueError(f"no random state for worker {min(missing)}")
            return state, tuple(damaged)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"{path.name}: {error}")
    return None, tuple(damaged)


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints beyond `step`: the damaged ones that a resumed run will write again."""
    for path in _folders(folder):
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path, ignore_errors=True)


def _load(path: Path) -> State:
    digests = json.loads((path / _MANIFEST).read_text("utf-8"))
    for name, digest in digests.items():
        if _digest(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    facts = json.loads((path / "state.json").read_text("utf-8"))
    return State(
        counters=Counters(**facts["counters"]),
        fingerprint=facts["fingerprint"],
        adapter=load_file(path / "adapter.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        rng=load_file(path / "rng.safetensors"),
    )


def _folders(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

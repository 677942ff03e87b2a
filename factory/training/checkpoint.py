"""Checkpoints of a run: everything a resumed run needs to go on as if nothing had happened.

    writer = Writer(folder, keep=2, url="s3://bucket/run-1")
    writer.write(state)                            # returns at once; `flush` waits
    state, damaged = newest(folder)     # the newest good one, or None

A checkpoint is a folder `step-00000050` with what is trained, the optimizer's moments, the random
state of every worker, and the counters, from which learning rate and data position follow. It is
written under another name and renamed when it is whole; `manifest.json` has the sha256 of each
file, and a folder that does not match is passed over. Tensors are safetensors files: nothing is
unpickled. A copy may go to an object store, the manifest last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from factory.training import remote
from factory.training.errors import TrainingError

_MANIFEST = "manifest.json"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, SafetensorError)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
    best_loss: float = 0.0
    """The lowest it has been."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One checkpoint in memory."""

    counters: Counters
    fingerprint: str
    """What the run was started with; another one must not resume it."""
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    """What is trained, by parameter."""
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
        for key in MOMENTS
    }


def restore(
    state: State,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, torch.nn.Parameter],
) -> None:
    """Put a checkpoint's tensors back into the model and the optimizer."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.weights[name])
            optimizer.state[parameter] = {
                key: state.optimizer[f"{key}.{name}"].to(
                    parameter.device if key != "step" else "cpu"
                )
                for key in MOMENTS
            }


def restore_random(state: State, rank: int, seed: int) -> None:
    """Put a worker's random state back; a worker that was not there before is seeded anew."""
    if (cuda := state.rng.get(f"cuda.{rank}")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    if (own := state.rng.get(str(rank))) is not None:
        torch.set_rng_state(own)
    else:
        torch.manual_seed(seed + rank + state.counters.step)


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a checkpoint under `folder`, then remove all but the newest `keep`."""
    target = folder / f"step-{state.counters.step:08d}"
    draft = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for name in ("weights", "optimizer", "rng"):
            save_file(dict(getattr(state, name)), draft / f"{name}.safetensors")
        facts = {"counters": asdict(state.counters), "fingerprint": state.fingerprint}
        (draft / "state.json").write_text(json.dumps(facts, sort_keys=True), "utf-8")
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        (draft / _MANIFEST).write_text(json.dumps(digests, sort_keys=True), "utf-8")
        for path in draft.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise TrainingError(
            f"cannot write the checkpoint '{target}': {error}; free some space and run again"
        ) from error
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def held(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, so that training can go on while they are written."""
    return {
        name: torch.empty_like(item, device="cpu").copy_(item.detach())
        for name, item in tensors.items()
    }


class Writer:
    """Writes checkpoints in a thread of its own, one at a time, and copies them to `url`."""

    def __init__(self, folder: Path, keep: int, url: str | None = None) -> None:
        self.folder, self.keep, self.url = folder, keep, url
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, state: State) -> None:
        """Begin to write a state whose tensors nobody changes; waits for the one before.

        Raises what went wrong with the one before, a `TrainingError`.
        """
        self.flush()
        self._pending = self._thread.submit(self._write, state)

    def flush(self) -> None:
        """Wait until everything is on disk and copied. Raises `TrainingError`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish what was begun; for the way out, so nothing is raised."""
        self._thread.shutdown(wait=True)

    def _write(self, state: State) -> None:
        path = save(self.folder, state, self.keep)
        if self.url is not None:
            remote.upload(path, self.url, self.keep)


def newest(folder: Path) -> tuple[State | None, tuple[str, ...]]:
    """The newest checkpoint that is whole, or None, and what is wrong with the newer ones."""
    damaged: list[str] = []
    for path in _folders(folder):
        try:
            return _load(path), tuple(damaged)
        except _UNREADABLE as error:
            damaged.append(f"{path.name}: {error}")
    return None, tuple(damaged)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 where there is none."""
    found = _folders(folder)
    return int(found[0].name.removeprefix("step-")) if found else 0


def fetch(folder: Path, url: str) -> tuple[str, ...]:
    """Bring the newest whole checkpoint at `url` into `folder`, if it is newer than any there.

    Returns what is wrong with the ones passed over. Raises `TrainingError` when the store cannot
    be asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    damaged = []
    with FileLock(folder / ".fetch"):
        state, _ = newest(folder)
        have = f"step-{state.counters.step:08d}" if state else ""
        for name in remote.steps(url):
            if name <= have:
                break
            draft = folder / f".{name}.fetched"
            shutil.rmtree(draft, ignore_errors=True)
            try:
                remote.download(url, name, draft)
                _load(draft)
            except _UNREADABLE as error:
                shutil.rmtree(draft, ignore_errors=True)
                damaged.append(f"{url}/{name}: {error}")
                continue
            shutil.rmtree(folder / name, ignore_errors=True)
            draft.rename(folder / name)
            break
    return tuple(damaged)


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
        weights=load_file(path / "weights.safetensors"),
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

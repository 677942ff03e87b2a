"""The loop on a two-layer model: learning, resuming, refusing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.training import adapter, loop
from factory.training.chat import encode_all
from factory.training.checkpoint import Counters
from factory.training.config import TrainConfig, check
from factory.training.errors import TrainingError
from factory.training.loop import Data, Peers, Summary
from factory.training.model import load_base
from factory.training.run import RunFolder
from tests.training import tiny

BASE = {
    "bf16": False,
    "lora_r": 4,
    "lora_dropout": 0.1,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "max_steps": 6,
    "save_steps": 1,
    "logging_steps": 1,
    "eval_samples": 4,
}


def settings(**changes: Any) -> TrainConfig:
    return check({**BASE, **changes}, "test")


@pytest.fixture
def data(tiny_model: Path) -> Data:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = encode_all(tokenizer, tiny.examples(40), 256, drop_long=False)
    return Data(train=rows[:32], validation=rows[32:])


class Stop(Exception):
    """The power goes out."""


def stop_after(step: int) -> Callable[[Counters], None]:
    def saved(now: Counters) -> None:
        if now.step == step:
            raise Stop

    return saved


def run(
    model: Path, data: Data, folder: Path, config: TrainConfig, peers: Peers | None = None
) -> tuple[Summary, str]:
    base, _ = load_base(str(model), config)
    wrapped = adapter.wrap(base, config)
    home = RunFolder(folder)
    summary = loop.fit(config, wrapped, data, home, config.fingerprint(), peers or Peers())
    adapter.export(wrapped, home, base_name="tiny", revision="abc")
    weights = (home.adapter / "adapter_model.safetensors").read_bytes()
    return summary, hashlib.sha256(weights).hexdigest()


def losses(folder: Path) -> list[float]:
    return [point["loss"] for point in RunFolder(folder).points()]


def test_it_learns_and_leaves_a_peft_folder(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    config = settings(max_steps=60, lora_dropout=0.0, save_steps=100)
    summary, _ = run(tiny_model, data, tmp_path, config)
    curve = losses(tmp_path)
    assert len(curve) == summary.steps == 60
    assert curve[-1] < curve[0] / 2
    assert summary.validation_loss is not None
    assert summary.validation_loss < curve[0] / 2
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (facts["base_model_name_or_path"], facts["revision"]) == ("tiny", "abc")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").state_dict()
    for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tiny_model: Path, data: Data, tmp_path: Path, accumulation: int
) -> None:
    config = settings(gradient_accumulation_steps=accumulation)
    _, straight = run(tiny_model, data, tmp_path / "straight", config)
    with pytest.raises(Stop):
        run(tiny_model, data, tmp_path / "cut", config, Peers(saved=stop_after(3)))
    summary, resumed = run(tiny_model, data, tmp_path / "cut", config)
    assert summary.resumed_from == 3
    assert resumed == straight
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")


def test_a_damaged_checkpoint_is_passed_over(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    config = settings()
    _, straight = run(tiny_model, data, tmp_path / "straight", config)
    with pytest.raises(Stop):
        run(tiny_model, data, tmp_path / "cut", config, Peers(saved=stop_after(4)))
    newest = tmp_path / "cut" / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    summary, resumed = run(tiny_model, data, tmp_path / "cut", config)
    assert summary.resumed_from == 3
    assert "optimizer.safetensors" in summary.damaged[0]
    assert resumed == straight
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")


def test_a_finished_run_gives_the_same_adapter_again(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    _, first = run(tiny_model, data, tmp_path, settings())
    summary, again = run(tiny_model, data, tmp_path, settings())
    assert (summary.steps, summary.resumed_from, again) == (6, 6, first)


def test_other_arguments_do_not_resume(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    run(tiny_model, data, tmp_path, settings())
    with pytest.raises(TrainingError, match="another --run-name"):
        run(tiny_model, data, tmp_path, settings(seed=8))


def test_only_the_newest_checkpoints_are_kept(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    run(tiny_model, data, tmp_path, settings())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000006"]


def test_the_budget_ends_the_run_and_counts_earlier_starts(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    config = settings(max_steps=None, max_train_seconds=4)
    base, _ = load_base(str(tiny_model), config)
    ticks = iter(range(1000))

    def clock() -> float:
        return float(next(ticks))

    model = adapter.wrap(base, config)
    home = RunFolder(tmp_path)
    with pytest.raises(Stop):
        loop.fit(config, model, data, home, "x", Peers(saved=stop_after(2)), clock)
    summary = loop.fit(config, model, data, home, "x", Peers(), clock)
    assert (summary.resumed_from, summary.steps, summary.seconds) == (2, 4, 4.0)
    rates = [point["learning_rate"] for point in home.points()]
    assert rates[-1] < max(rates)


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    config = settings()
    base, _ = load_base(str(tiny_model), config)
    model = adapter.wrap(base, config)
    with torch.no_grad():
        base.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss is nan"):
        loop.fit(config, model, data, RunFolder(tmp_path), "x", Peers())
    assert not (tmp_path / "checkpoints").exists()


def test_an_empty_split_and_an_adapter_without_parameters_are_refused(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    config = settings()
    base, _ = load_base(str(tiny_model), config)
    model, empty = adapter.wrap(base, config), replace(data, train=[])
    with pytest.raises(TrainingError, match="train split is empty"):
        loop.fit(config, model, empty, RunFolder(tmp_path), "x", Peers())
    with pytest.raises(TrainingError, match="target_modules"):
        adapter.wrap(load_base(str(tiny_model), config)[0], settings(target_modules=["nothing"]))


def test_the_same_weights_are_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    config = settings()
    folders = []
    for name in ("one", "two"):
        base, _ = load_base(str(tiny_model), config)
        folder = tmp_path / name
        folder.mkdir()
        adapter.save(adapter.wrap(base, config), folder, base_name="tiny", revision="abc")
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert folders[0] == folders[1]
    assert set(folders[0]) == {"adapter_config.json", "adapter_model.safetensors"}
    names = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert all("lora_" in name for name in names)

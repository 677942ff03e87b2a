"""Every way to tune, on the tiny model: it learns, it resumes bit by bit, its result is usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.training import adapter, checkpoint, model
from factory.training.chat import encode_all
from factory.training.config import TrainConfig, check
from factory.training.errors import Interrupted, TrainingError
from factory.training.loop import Data, Peers, fit
from factory.training.run import RunFolder
from tests.training import tiny

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "qlora-nf4": {"load_in_4bit": True, "bf16": True},
    "lora-int8": {"load_in_8bit": True, "bf16": True},
    "full": {"use_peft": False, "full_tuning_reason": "every weight is to be tested"},
}


def settings(**changes: Any) -> TrainConfig:
    values = {
        "bf16": False,
        "lora_r": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "max_steps": 24,
        "save_steps": 100,
        "logging_steps": 1,
        "eval_samples": 4,
    }
    return check({**values, **changes}, "test")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the blocks of 64 that bitsandbytes quantizes."""
    return tiny.model(tmp_path_factory.mktemp("wide-model"), hidden=64)


@pytest.fixture
def data(tiny_model: Path) -> Data:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = encode_all(tokenizer, tiny.examples(40), 256, drop_long=False)
    return Data(train=rows[:32], validation=rows[32:])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_a_notice_costs_nothing(
    tiny_model: Path, data: Data, tmp_path: Path, method: str
) -> None:
    config = settings(**METHODS[method])
    assert config.method == method
    tuned, _ = model.build(str(tiny_model), config)
    straight = RunFolder(tmp_path / "straight")
    fit(config, tuned, data, straight, "x", Peers())
    curve = [point["loss"] for point in straight.points()]
    assert curve[-1] < 0.7 * curve[0]

    cut, seen = RunFolder(tmp_path / "cut"), iter(range(100))
    notice = lambda: "the node goes" if next(seen) == 6 else None  # noqa: E731
    again, _ = model.build(str(tiny_model), config)
    with pytest.raises(Interrupted, match="the node goes after step 7"):
        fit(config, again, data, cut, "x", Peers(notice=notice))
    again, _ = model.build(str(tiny_model), config)
    summary = fit(config, again, data, cut, "x", Peers())
    assert (summary.resumed_from, summary.lost) == (7, 0)
    assert cut.starts()[1]["left_at"] is not None
    left, right = (checkpoint.newest(run.checkpoints)[0] for run in (straight, cut))
    assert left is not None
    assert right is not None
    assert all(torch.equal(left.weights[name], right.weights[name]) for name in left.weights)


def test_a_quantized_base_is_smaller(tiny_model: Path) -> None:
    sizes = {}
    for method in ("lora", "qlora-nf4", "lora-int8"):
        config = settings(**{**METHODS[method], "bf16": True})
        base, _ = model.load_base(str(tiny_model), config)
        sizes[method] = model.weight_bytes(base)
    assert sizes["qlora-nf4"] < sizes["lora-int8"] < sizes["lora"]


def test_full_weights_are_a_folder_like_the_base(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    config = settings(**METHODS["full"], max_steps=2)
    tuned, tokenizer = model.build(str(tiny_model), config)
    run = RunFolder(tmp_path)
    fit(config, tuned, data, run, "x", Peers())
    model.export(tuned, tiny_model, run)
    loaded = AutoModelForCausalLM.from_pretrained(run.model)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], item) for name, item in tuned.state_dict().items())
    template = AutoTokenizer.from_pretrained(run.model).chat_template
    assert template == tokenizer.chat_template


def test_a_dora_adapter_loads_into_the_base(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    config = settings(use_dora=True, max_steps=2)
    tuned, _ = model.build(str(tiny_model), config)
    run = RunFolder(tmp_path)
    fit(config, tuned, data, run, "x", Peers())
    adapter.export(tuned, run, base_name="tiny", revision="abc")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, run.adapter)
    assert any("magnitude" in name for name in loaded.state_dict())


def test_a_run_that_explodes_stops_and_says_so(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    config = settings(**METHODS["full"], learning_rate=50.0, max_grad_norm=1e6)
    config = config.model_copy(update={"max_steps": 200, "warmup_steps": 0})
    tuned, _ = model.build(str(tiny_model), config)
    with pytest.raises(TrainingError, match=r"has diverged|the loss is .*nan"):
        fit(config, tuned, data, RunFolder(tmp_path), "x", Peers())


def test_fewer_workers_take_the_shares_of_the_missing(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    pair = settings(num_workers=[1, 2], per_device_train_batch_size=4, max_steps=5)
    alone = settings(per_device_train_batch_size=8, max_steps=5)
    curves = []
    for name, config in (("pair", pair), ("alone", alone)):
        run = RunFolder(tmp_path / name)
        fit(config, model.build(str(tiny_model), config)[0], data, run, "x", Peers())
        curves.append([point["loss"] for point in run.points()])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)

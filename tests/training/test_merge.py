"""Merged weights answer as base and adapter do, and are made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from factory.catalog.objects import Object, ObjectStore
from factory.training.merge import merge
from tests.training import tiny

IDS = torch.tensor([[1, 5, 9, 4, 7]])


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def base(store: ObjectStore, tmp_path: Path) -> Object:
    made = tiny.model(tmp_path / "tiny")

    def fill(folder: Path) -> None:
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    return store.put("models", "tiny", fill)


@pytest.fixture
def adapter(base: Object, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base.path)
    worn = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in worn.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    worn.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_merged_weights_answer_as_base_and_adapter(
    store: ObjectStore, base: Object, adapter: Path
) -> None:
    merged = merge(store, base, adapter, "ab" * 32)

    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    before = _logits(plain)
    wearing = _logits(PeftModel.from_pretrained(plain, str(adapter)))
    alone = _logits(AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32))
    assert not torch.allclose(before, wearing, atol=1e-2), "the adapter must change something"
    assert torch.allclose(alone, wearing, atol=1e-4)


def test_the_tokenizer_and_configuration_come_along(
    store: ObjectStore, base: Object, adapter: Path
) -> None:
    merged = merge(store, base, adapter, "ab" * 32)

    assert {name for name in base.files if not name.endswith(".safetensors")} <= set(merged.files)


def test_the_same_pair_is_merged_once(store: ObjectStore, base: Object, adapter: Path) -> None:
    first = merge(store, base, adapter, "ab" * 32)
    again = merge(store, base, adapter, "ab" * 32)
    other = merge(store, base, adapter, "cd" * 32)

    assert again == first
    assert other.name != first.name

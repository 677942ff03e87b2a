import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from factory.training.errors import TrainingError
from factory.training.quantization import Scheme, _best_scale, _int4, _int8, quantize


def test_eight_bits_are_within_half_a_step_and_four_bits_within_a_clipped_one() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    parts, restored = _int8(weight)
    assert parts["weight"].dtype == torch.int8
    assert torch.equal(parts["weight"].float() * parts["weight_scale"], restored)
    assert (restored - weight).abs().max() <= weight.abs().max() * 0.25
    assert (restored - weight).square().mean() < 1e-4 * weight.square().mean()
    four, coarse = _int4(weight, 32)
    assert four["weight_packed"].shape == (64, 12)
    assert four["weight_scale"].shape == (64, 3)
    assert (coarse - weight).square().mean() < 0.02 * weight.square().mean()


def test_the_chosen_scale_is_no_worse_than_the_plain_one() -> None:
    torch.manual_seed(1)
    rows = torch.randn(50, 64) ** 3
    plain = rows.abs().amax(-1, keepdim=True) / 7
    best = _best_scale(rows, 7)

    def error(scale: torch.Tensor) -> torch.Tensor:
        whole = (rows / scale).round().clamp(-7, 7)
        return (whole * scale - rows).square().sum(-1)

    assert (error(best) <= error(plain) + 1e-6).all()
    assert (error(best) < error(plain) - 1e-6).any()


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_the_written_model_answers_like_the_original(
    tiny_model: Path, tmp_path: Path, scheme: Scheme
) -> None:
    made = quantize(tiny_model, scheme, tmp_path)
    assert made.layers > 0
    assert made.bytes_after < made.bytes_before
    declared = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert declared["quant_method"] == "compressed-tensors"
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.endswith("weight_scale") for name in names)
    ids = torch.tensor([[1, 5, 9, 40, 3]])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)(ids).logits
        after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
    near = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert near > (0.99 if scheme == "w8a8" else 0.9)


def test_what_cannot_be_quantized_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    quantize(tiny_model, "w8a8", once)
    with pytest.raises(TrainingError, match="quantized already"):
        quantize(once, "w4a16", twice)
    with pytest.raises(TrainingError, match="cannot read the model's configuration"):
        quantize(tmp_path / "nowhere", "w8a8", twice)
    shutil.copy(tiny_model / "config.json", twice / "config.json")
    with pytest.raises(TrainingError, match="has no safetensors weights"):
        quantize(twice, "w8a8", tmp_path)

"""The model of a run: base weights as the arguments want them, ready to train.

    model, tokenizer = build(folder, config)       # adapter on a frozen base, or every weight
    export(model, folder, run)                     # a fully tuned model as a plain weights folder

The base is held in bfloat16, or quantized by bitsandbytes; adapters, and the weights of full
tuning, are float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from factory.training import adapter, packing
from factory.training.config import TrainConfig
from factory.training.errors import TrainingError
from factory.training.run import RunFolder


def build(folder: str, config: TrainConfig) -> tuple[Any, Any]:
    """The model to train and its tokenizer. Raises `TrainingError`."""
    base, tokenizer = load_base(folder, config)
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.use_peft:
        torch.manual_seed(config.seed)
        return base.float().requires_grad_(True), tokenizer
    return adapter.wrap(base, config), tokenizer


def load_base(folder: str, config: TrainConfig) -> tuple[Any, Any]:
    """Base and tokenizer of a weights folder, with packed attention. Raises `TrainingError`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if config.bf16 and config.use_peft else torch.float32,
            attn_implementation=packing.NAME,
            **_quantized(config),
        )
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(f"cannot load the base model from '{folder}': {error}") from error
    return model, tokenizer


def _quantized(config: TrainConfig) -> dict[str, Any]:
    if not (config.load_in_4bit or config.load_in_8bit):
        return {}
    compute = torch.bfloat16 if config.bf16 else torch.float32
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=config.load_in_4bit,
            load_in_8bit=config.load_in_8bit,
            bnb_4bit_quant_type=config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute,
        )
    }


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers, quantization constants included."""
    tensors = {id(item): item for item in [*model.parameters(), *model.buffers()]}
    total: int = sum(item.numel() * item.element_size() for item in tensors.values())
    for item in tensors.values():
        state = getattr(item, "quant_state", None)
        while state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            state = getattr(state, "state2", None)
    return total


def export(model: Any, base: Path, run: RunFolder) -> None:
    """Write a fully tuned model into the run's folder, in the base's dtype, whole or not at all."""
    draft = run.root / ".model"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    dtype = AutoConfig.from_pretrained(base).dtype or torch.bfloat16
    tied = bool(model.config.tie_word_embeddings)
    weights = {
        name: item.detach().to(dtype).cpu().contiguous()
        for name, item in sorted(model.state_dict().items())
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    for file in base.iterdir():
        if file.is_file() and not file.name.startswith("model") and file.name != "manifest.json":
            shutil.copy2(file, draft / file.name)
    shutil.rmtree(run.model, ignore_errors=True)
    draft.rename(run.model)

"""A LoRA adapter as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

    model = wrap(base, config)
    save(model, folder, base_name="smollm2-135m", revision="0a1b2c…")

The folder names the base and pins its revision. The same weights always give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from factory.training.config import TrainConfig
from factory.training.errors import TrainingError
from factory.training.run import RunFolder


def wrap(base: Any, config: TrainConfig) -> Any:
    """The base with a fresh float32 adapter, everything else frozen.

    Raises `TrainingError` when no module matches or nothing can be trained.
    """
    torch.manual_seed(config.seed)
    try:
        model = get_peft_model(
            base,
            LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=config.target_modules,
                layers_to_transform=config.layers_to_transform,
                use_dora=config.use_dora,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise TrainingError(
            f"target_modules {config.target_modules} do not fit the model: {error}"
        ) from error
    trained = trainable(model)
    if not trained:
        raise TrainingError(
            "the adapter has no trainable parameters; check target_modules and "
            "layers_to_transform against the model's layers"
        )
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    return model


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in the model's order."""
    return {name: item for name, item in model.named_parameters() if item.requires_grad}


def export(model: Any, run: RunFolder, *, base_name: str, revision: str) -> None:
    """Write the trained adapter into the run's folder, whole or not at all."""
    draft = run.root / ".adapter"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save(model, draft, base_name=base_name, revision=revision)
    shutil.rmtree(run.adapter, ignore_errors=True)
    draft.rename(run.adapter)


def save(model: Any, folder: Path, *, base_name: str, revision: str) -> None:
    """Write the adapter of `model` into `folder`; the caller makes that atomic."""
    facts = model.peft_config["default"].to_dict()
    facts.update(base_model_name_or_path=base_name, revision=revision, inference_mode=True)
    text = json.dumps(_plain(facts), indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value

"""Weights in 8 or 4 bits, in the `compressed-tensors` layout that vLLM serves on CPU and GPU.

    facts = quantize(model_folder, "w8a8", folder)      # int8 weights, activations as they come
    facts = quantize(model_folder, "w4a16", folder)     # 4-bit weights by groups

Linear layers inside the transformer's blocks are rounded to the nearest step of a symmetric scale,
one an output channel (8 bits) or one a group of inputs (4 bits). The scale is the one of a few
clipping ratios that leaves the least squared error. Embeddings, norms and the output layer stay as
they are. It works on files: no model is built, and no data is needed.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from factory.training.errors import TrainingError

Scheme = Literal["w8a8", "w4a16"]

_LINEAR = re.compile(r"\blayers\.\d+\..+_proj\.weight$")
_GROUPS = (128, 64, 32)
_CLIPPING = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8)
_MULTIPLE = 32
"""Both sides of a weight must be a multiple of this for the engine's kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What was done to a model."""

    scheme: Scheme
    layers: int
    """Weight matrices that are quantized."""
    bytes_before: int
    bytes_after: int
    relative_error: float
    """Squared error over squared weight, of the quantized matrices."""
    group_size: int | None


def quantize(source: Path, scheme: Scheme, folder: Path) -> Quantized:
    """Write the model at `source` quantized into `folder`; the caller makes that atomic.

    Raises `TrainingError` when it cannot be read, is quantized already, or has no linear layer
    that the engine's kernels take.
    """
    try:
        config = json.loads((source / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the model's configuration: {error}") from error
    if "quantization_config" in config:
        raise TrainingError(
            f"the weights in '{source}' are quantized already; quantize the original"
        )
    tensors = _read(source)
    group = None if scheme == "w8a8" else _group_size(tensors)
    written: dict[str, torch.Tensor] = {}
    wrong = power = 0.0
    count = 0
    for name, weight in tensors.items():
        if not _takes(name, weight):
            written[name] = weight
            continue
        full = weight.float()
        parts, restored = _int8(full) if group is None else _int4(full, group)
        prefix = name.removesuffix("weight")
        for key, part in parts.items():
            is_scale = key == "weight_scale"
            written[prefix + key] = (part.to(weight.dtype) if is_scale else part).contiguous()
        wrong += float((restored - full).square().sum())
        power += float(full.square().sum())
        count += 1
    if not count:
        raise TrainingError(
            f"the model in '{source}' has no linear layer with both sides a multiple of "
            f"{_MULTIPLE}, which is what the engine's kernels take"
        )
    for path in sorted(source.iterdir()):
        left_out = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not left_out and path.name != "manifest.json":
            shutil.copy2(path, folder / path.name)
    ignored = sorted(
        name.removesuffix(".weight")
        for name, weight in tensors.items()
        if _LINEAR.search(name) and not _takes(name, weight)
    )
    config["quantization_config"] = _declaration(scheme, group, ["lm_head", *ignored])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    return Quantized(
        scheme=scheme,
        layers=count,
        bytes_before=_bytes(tensors),
        bytes_after=_bytes(written),
        relative_error=wrong / power,
        group_size=group,
    )


def _int8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of one matrix in 8 bits by output channel, and what they stand for."""
    scale = _best_scale(weight, 127)
    whole = (weight / scale).round().clamp(-127, 127)
    return {"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale


def _int4(weight: torch.Tensor, group: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of one matrix in 4 bits by groups of `group` inputs, and what they stand for."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    rows, columns = weight.shape
    grouped = weight.view(rows * columns // group, group)
    scale = _best_scale(grouped, 7)
    whole = (grouped / scale).round().clamp(-8, 7)
    parts = {
        "weight_packed": pack_to_int32(whole.view(rows, columns).to(torch.int8), 4),
        "weight_scale": scale.view(rows, columns // group),
        "weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }
    return parts, (whole * scale).view(rows, columns)


def _best_scale(rows: torch.Tensor, steps: int) -> torch.Tensor:
    """The scale of each row, `[rows, 1]`, whose rounding leaves the least squared error."""
    top = rows.abs().amax(-1, keepdim=True).clamp_min(1e-8)
    best, least = top / steps, torch.full_like(top, float("inf"))
    for ratio in _CLIPPING:
        scale = top * ratio / steps
        restored = (rows / scale).round().clamp(-steps, steps) * scale
        error = (restored - rows).square().sum(-1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _group_size(tensors: dict[str, torch.Tensor]) -> int:
    """The largest group that divides the inputs of every matrix."""
    inputs = {weight.shape[1] for name, weight in tensors.items() if _takes(name, weight)}
    return next(size for size in _GROUPS if all(width % size == 0 for width in inputs))


def _takes(name: str, weight: torch.Tensor) -> bool:
    fits = weight.ndim == 2 and all(side % _MULTIPLE == 0 for side in weight.shape)
    return fits and _LINEAR.search(name) is not None


def _declaration(scheme: Scheme, group: int | None, ignored: list[str]) -> dict[str, Any]:
    """`quantization_config` as compressed-tensors has it."""
    weights: dict[str, Any] = {"type": "int", "symmetric": True, "dynamic": False}
    if group is None:
        weights |= {"num_bits": 8, "strategy": "channel"}
        activations: dict[str, Any] | None = {
            "type": "int",
            "symmetric": True,
            "dynamic": True,
            "num_bits": 8,
            "strategy": "token",
        }
    else:
        weights |= {"num_bits": 4, "strategy": "group", "group_size": group}
        activations = None
    layout = "int-quantized" if group is None else "pack-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations,
                "output_activations": None,
                "format": layout,
            }
        },
    }


def _read(source: Path) -> dict[str, torch.Tensor]:
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise TrainingError(f"the folder '{source}' has no safetensors weights")
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as stored:
                tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot read the weights '{path}': {error}") from error
    return tensors


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

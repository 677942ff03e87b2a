"""A student made from its teacher's own layers: fewer of them, the same width and vocabulary.

    kept = choose_layers(total=30, keep=10, how="spread")       # (0, 3, 6, …, 29)
    facts = make_student(teacher_folder, kept, folder)

Embeddings, output layer and final norm are kept, layers are renumbered. It works on files: no
model is built. The folder is complete: configuration, weights, tokenizer, chat template.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from factory.training.errors import TrainingError

How = Literal["first", "spread", "ends"]

_LAYER = re.compile(r"^(?P<before>.*\blayers\.)(?P<number>\d+)(?P<after>\..+)$")
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Lists in a configuration that have one entry a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What was kept of a teacher."""

    layers: tuple[int, ...]
    parameters: int
    """Parameters of the student; tied weights count once."""
    teacher_parameters: int


def choose_layers(total: int, keep: int, how: How) -> tuple[int, ...]:
    """Which `keep` of `total` layers a student gets, in ascending order.

    `first` keeps the lowest, `spread` spaces them evenly from the first to the last, `ends` keeps
    the lowest and the last. Raises `TrainingError` for a number that is not there.
    """
    if not 1 <= keep <= total:
        raise TrainingError(
            f"a student of {keep} layers cannot be made from {total} layers; keep 1 to {total}"
        )
    if how == "first" or keep == 1:
        return tuple(range(keep))
    if how == "ends":
        return (*range(keep - 1), total - 1)
    return tuple(round(at * (total - 1) / (keep - 1)) for at in range(keep))


def make_student(teacher: Path, layers: Sequence[int], folder: Path) -> Cut:
    """Write a model of the teacher's `layers` into `folder`; the caller makes that atomic.

    Raises `TrainingError` when the teacher cannot be read or has no such layers.
    """
    try:
        config = json.loads((teacher / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the teacher's configuration: {error}") from error
    total = config.get("num_hidden_layers")
    if not isinstance(total, int):
        raise TrainingError(
            f"the configuration in '{teacher}' has no num_hidden_layers: its layers cannot be "
            "told apart; give a student of your own instead"
        )
    known = set(range(total))
    if not layers or sorted(set(layers)) != list(layers) or not known.issuperset(layers):
        raise TrainingError(
            f"layers {list(layers)} cannot be kept: name ascending numbers from 0 to {total - 1}"
        )
    if "quantization_config" in config:
        raise TrainingError(
            f"the weights in '{teacher}' are quantized; make the student from the original"
        )
    weights, size = _weights(teacher, {layer: at for at, layer in enumerate(layers)}, total)
    for path in sorted(teacher.iterdir()):
        skipped = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not skipped and path.name != "manifest.json":
            shutil.copy2(path, folder / path.name)
    config["num_hidden_layers"] = len(layers)
    for key in _BY_LAYER:
        if isinstance(config.get(key), list) and len(config[key]) == total:
            config[key] = [config[key][layer] for layer in layers]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return Cut(
        layers=tuple(layers),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        teacher_parameters=size,
    )


def _weights(teacher: Path, number: dict[int, int], total: int) -> tuple[dict[str, Any], int]:
    """The kept tensors under their new names, and how many parameters the teacher has."""
    weights: dict[str, Any] = {}
    size, seen = 0, set()
    files = sorted(teacher.glob("*.safetensors"))
    if not files:
        raise TrainingError(f"the teacher's folder '{teacher}' has no safetensors weights")
    for path in files:
        try:
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a mapping
                    tensor = stored.get_tensor(name)
                    size += tensor.numel()
                    hit = _LAYER.match(name)
                    if hit is None:
                        weights[name] = tensor
                        continue
                    seen.add(int(hit["number"]))
                    if (at := number.get(int(hit["number"]))) is not None:
                        weights[f"{hit['before']}{at}{hit['after']}"] = tensor
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot read the teacher's weights '{path}': {error}") from error
    if seen != set(range(total)):
        raise TrainingError(
            f"the weights in '{teacher}' have {len(seen)} numbered layers where the configuration "
            f"says {total}: they cannot be told apart; give a student of your own instead"
        )
    return weights, size

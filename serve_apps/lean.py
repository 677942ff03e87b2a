"""vLLM's imports without the parts that an eager engine on a CPU never calls.

    prefetch(folder)                            # first of all
    import_engine(on_cpu=True, eager=True)      # everything that a replica needs
    release()                                   # after a model is gone

Left out: torch's compiler (`torch._dynamo`, `torch._inductor` and `vllm.env_override`, its patch);
scikit-learn and SciPy, which transformers loads for assisted generation and for one loss; and
SciPy's filters, one of vLLM's ways to resample sound.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

MODULES = ("ray.serve.llm", "serve_apps.vllm_server", "vllm.entrypoints.openai.api_server")
"""What every engine imports."""

CPU_MODULES = (
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
)
"""What an engine on a CPU imports later on its own; the model stands for the usual ones."""


COMPILER = ("torch._dynamo", "torch._inductor")
OPTIONAL = ("scipy.signal",)
"""What its users do without where it cannot be imported."""


def prefetch(folder: Path) -> None:
    """Have the system read torch's and vLLM's libraries and the weights in `folder` from the disk,
    while Python is busy importing. Only a hint: what cannot be read is left out."""
    libraries = ("torch/lib/*.so", "vllm/*.so")
    site = Path(sysconfig.get_path("platlib"))
    wanted = [one for pattern in libraries for one in site.glob(pattern)]
    for file in [*wanted, *folder.glob("*.safetensors")]:
        with suppress(OSError), file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class _Nothing:
    """What stands for a class to inherit from, or for a decorator, with options or without."""

    def __new__(cls, *given: Any, **options: Any) -> Any:
        if len(given) == 1 and callable(given[0]) and not options:
            return given[0]
        return super().__new__(cls)

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        return function


class _Absent(ModuleType):
    """A module that has every public name, and nothing behind it."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (_Nothing,), {"__module__": self.__name__})
        setattr(self, name, found)
        return found


class _Absence(MetaPathFinder, Loader):
    """Finds every module under `COMPILER`, with nothing in it."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname.startswith(COMPILER) and fullname not in sys.modules:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import as if torch had no compiler: functions that ask for it stay as they are.

    Afterwards it is there again for whoever imports it. Does nothing once it is loaded.
    """
    import torch

    if any(name.startswith(COMPILER) for name in sys.modules):
        yield
        return
    absence = _Absence()
    sys.meta_path.insert(0, absence)
    try:
        with (
            mock.patch.object(torch, "compile", _as_it_is),
            mock.patch.multiple(torch.compiler, disable=_as_it_is, allow_in_graph=_as_it_is),
            # Which Triton kernels an operator has is for the compiler to know.
            mock.patch("torch._library.triton.get_inner_triton_kernels", return_value=[]),
        ):
            yield
    finally:
        sys.meta_path.remove(absence)
        for name in [name for name in sys.modules if name.startswith(COMPILER)]:
            del sys.modules[name]
        for name in COMPILER:
            vars(torch).pop(name.removeprefix("torch."), None)


def _as_it_is(function: Any = None, *ignored: Any, **options: Any) -> Any:
    """A decorator, with or without options, that changes nothing."""
    return function if function is not None else _as_it_is


@contextmanager
def trimmed() -> Iterator[None]:
    """Make vLLM's imports shorter. Does nothing once vLLM is imported."""
    if "vllm" in sys.modules:
        yield
        return
    from transformers import utils
    from transformers.utils import import_utils

    for name in ("sklearn", "scipy"):
        setattr(import_utils, f"is_{name}_available", _no)
        setattr(utils, f"is_{name}_available", _no)
    sys.modules.setdefault("vllm.env_override", ModuleType("vllm.env_override"))
    blocked = {name: None for name in OPTIONAL if name not in sys.modules}
    sys.modules.update(blocked)  # type: ignore[arg-type]
    try:
        with without_compiler():
            yield
    finally:
        for name in blocked:
            del sys.modules[name]


def import_engine(*, on_cpu: bool, eager: bool) -> None:
    """Import what an engine needs, and keep the garbage collector from walking over it again.

    An `eager` engine on a CPU never compiles, and is imported without what would.
    """
    with trimmed() if on_cpu and eager else nullcontext():
        for name in MODULES + (CPU_MODULES if on_cpu else ()):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def release() -> None:
    """Give the memory of a model that nothing refers to any more back to the system."""
    # vLLM freezes everything that is there once its core stands, the core's own cycles too.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _no() -> bool:
    return False

"""vLLM's imports without the parts that an eager engine on a CPU never calls.

    prefetch(folder)             # first of all
    trim()                       # before anything of vLLM is imported in this process
    import_engine(on_cpu=True)   # everything that a replica needs: 5 s of CPU
    release()                    # after a model is gone

Left out: `vllm.env_override`, which loads torch's compiler in order to patch it, and scikit-learn,
which transformers loads for one function of assisted generation.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from types import ModuleType

MODULES = ("ray.serve.llm", "serve_apps.vllm_server", "vllm.entrypoints.openai.api_server")
"""What every engine imports."""

CPU_MODULES = ("vllm.v1.worker.cpu_worker", "vllm.model_executor.models.llama")
"""What an engine on a CPU imports later on its own; the model stands for the usual ones."""


def prefetch(folder: Path) -> None:
    """Have the system read torch's and vLLM's libraries and the weights in `folder` from the disk,
    while Python is busy importing. Only a hint: what cannot be read is left out."""
    libraries = ("torch/lib/*.so", "vllm/*.so")
    site = Path(sysconfig.get_path("platlib"))
    wanted = [one for pattern in libraries for one in site.glob(pattern)]
    for file in [*wanted, *folder.glob("*.safetensors")]:
        with suppress(OSError), file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def trim() -> None:
    """Make the imports shorter. Does nothing once vLLM is imported."""
    if "vllm" in sys.modules:
        return
    from transformers import utils
    from transformers.utils import import_utils

    sys.modules.setdefault("vllm.env_override", ModuleType("vllm.env_override"))
    import_utils.is_sklearn_available = utils.is_sklearn_available = _no  # type: ignore[assignment]


def import_engine(*, on_cpu: bool) -> None:
    """Import what an engine needs, and keep the garbage collector from walking over it again."""
    if on_cpu:
        trim()
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

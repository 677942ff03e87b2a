"""Where a Ray Train process enters a run, with nothing heavy imported before it is needed.

Ray's controller reads this function too: were it beside the trainer, every start would import
PyTorch's model libraries twice, one time for nothing.
"""

from __future__ import annotations

import time
from typing import Any


def enter(job: dict[str, Any]) -> dict[str, Any]:
    """Do `job["work"]`, `module:function`, with the task `job["task"]`."""
    begun = time.monotonic()
    from importlib import import_module

    from factory.training.train import attend_to

    module, _, name = job["work"].partition(":")
    return attend_to(job["task"], getattr(import_module(module), name), begun)

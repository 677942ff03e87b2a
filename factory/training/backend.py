"""Ray Train's process group without its farewell, so that a lost node is got over sooner.

    TorchTrainer(enter, torch_config=Prompt(), …)

Before it ends a worker's process, Ray Train asks the worker to leave its process group. A worker
that is gone does not answer, which is found out after two seconds; one that is there is ended
right after, which leaves the group as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.torch.config import TorchConfig, _TorchBackend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing: the process ends."""


@dataclass
class Prompt(TorchConfig):  # type: ignore[misc]
    """A `TorchConfig` whose workers are ended without being asked to leave first."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """The backend Ray Train makes."""
        return _Backend

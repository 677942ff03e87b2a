"""One optimizer step, and the state it leaves: AdamW on each worker, or ZeRO across them.

    update = Whole(module, trained, config, peers.distribute)
    with update.waiting(last=True):
        update.backward(update.module(batch)[0])
    norm = update.step(rate)

`zero.py` has the other one, which spreads the optimizer's state, the gradients and the weights
over the workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from factory.training import checkpoint
from factory.training.checkpoint import State
from factory.training.config import TrainConfig


class Update(Protocol):
    """How gradients become new weights."""

    module: nn.Module
    """What is called with a batch."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""

    def waiting(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one pass; `last` of its step."""

    def step(self, rate: float) -> float:
        """Change the weights and forget the gradient; returns its norm before clipping."""

    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained, by parameter, whole and held on the CPU; every worker must ask."""

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, likewise."""

    def restore(self, state: State) -> None:
        """Put weights and moments of a checkpoint back."""


class Whole:
    """AdamW with the whole state on each worker, gradients shared by DistributedDataParallel."""

    def __init__(
        self,
        module: nn.Module,
        trained: Mapping[str, nn.Parameter],
        config: TrainConfig,
        distribute: Callable[[nn.Module], nn.Module],
    ) -> None:
        self.trained, self.max_norm = trained, config.max_grad_norm
        self.module = distribute(module)
        self.optimizer = torch.optim.AdamW(
            trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Add a gradient."""
        torch.autograd.backward(loss)

    def waiting(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward: workers share gradients only in the step's last pass."""
        if last or not isinstance(self.module, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def step(self, rate: float) -> float:
        """Clip, step, forget."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.max_norm).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of what is trained."""
        return checkpoint.held({name: item.data for name, item in self.trained.items()})

    def moments(self) -> dict[str, torch.Tensor]:
        """Copies of AdamW's state."""
        return checkpoint.held(checkpoint.moments(self.optimizer, self.trained))

    def restore(self, state: State) -> None:
        """Weights and moments back in place."""
        checkpoint.restore(state, self.optimizer, self.trained)

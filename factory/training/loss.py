"""Losses over the output layer that never hold more than a slice of its logits.

    total = over_vocabulary(hidden, head.weight, CrossEntropy(), learned)

The output layer of a small model has a vocabulary of fifty thousand: logits and their gradient
for a few thousand tokens are gigabytes. Here a slice of tokens at a time goes through layer and
loss, forward and backward at once, and only the gradient with respect to the hidden states (and
to the layer, where that is trained) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

CHUNK = 512
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The tokens a loss is taken over, `n` of them."""

    wanted: torch.Tensor
    """Token to be said, `[n]`."""
    example: torch.Tensor
    """Index of each one's example in its split, `[n]`."""
    place: torch.Tensor
    """How many learned tokens of that example come before it, `[n]`."""

    def part(self, start: int, end: int) -> Learned:
        """The tokens from `start` to `end`."""
        return Learned(self.wanted[start:end], self.example[start:end], self.place[start:end])


class Loss(Protocol):
    """Something to be made small."""

    def __call__(self, logits: torch.Tensor, learned: Learned) -> torch.Tensor:
        """Sum over tokens of the loss, for float32 logits `[n, vocabulary]`; differentiable."""


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy against the data's own tokens."""

    label_smoothing: float = 0.0

    def __call__(self, logits: torch.Tensor, learned: Learned) -> torch.Tensor:
        """Sum over tokens."""
        return nn.functional.cross_entropy(
            logits, learned.wanted, reduction="sum", label_smoothing=self.label_smoothing
        )


def over_vocabulary(
    hidden: torch.Tensor, weight: torch.Tensor, loss: Loss, learned: Learned
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss summed over tokens with hidden states `[n, width]`, and the likeliest tokens `[n]`.

    `weight` is the output layer's, `[vocabulary, width]`.
    """
    total: torch.Tensor
    said: torch.Tensor
    total, said = _OverVocabulary.apply(hidden, weight, loss, learned)  # type: ignore[no-untyped-call]
    return total, said


class _OverVocabulary(torch.autograd.Function):
    """Forward and backward in one pass over slices of the tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, loss: Loss, learned: Learned
    ) -> tuple[torch.Tensor, torch.Tensor]:
        into_hidden, into_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        said = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if into_hidden else None
        weight_grad = torch.zeros_like(weight) if into_weight else None
        layer = weight.to(hidden.dtype)
        for start in range(0, len(hidden), CHUNK):
            piece = hidden[start : start + CHUNK]
            logits = (piece @ layer.T).float()
            said[start : start + CHUNK] = logits.argmax(-1)
            with torch.set_grad_enabled(into_hidden or into_weight):
                logits.requires_grad_(into_hidden or into_weight)
                value = loss(logits, learned.part(start, start + CHUNK))
            total += value.detach()
            if not (into_hidden or into_weight):
                continue
            (gradient,) = torch.autograd.grad(value, logits)
            gradient = gradient.to(piece.dtype)
            if hidden_grad is not None:
                hidden_grad[start : start + CHUNK] = gradient @ layer
            if weight_grad is not None:
                weight_grad += (gradient.T @ piece).to(weight.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(said)
        return total, said

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else hidden * total.to(hidden.dtype),
            None if weight is None else weight * total.to(weight.dtype),
            None,
            None,
        )

"""The loss of a student: its teacher's distribution, and the data's own answers where it has any.

    loss = FromTeacher(teachings, trusted, kind="forward_kl", temperature=2.0, ce_weight=0.5)
    fit(..., objective=lambda model: Objective(model, loss, autocast))

For a learned token of an example with a trusted answer the loss is
`ce_weight * cross_entropy + (1 - ce_weight) * T**2 * divergence`; where the answer is the
teacher's own the divergence says all that the cross-entropy could, and more, so it counts alone.
`T**2` keeps the gradient's size when the temperature changes (Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from factory.training.divergence import Kind, Teaching, divergence
from factory.training.errors import TrainingError
from factory.training.loss import Learned
from factory.training.teaching import joined


class FromTeacher:
    """A `Loss` over the examples of one train split, which the teacher has seen before."""

    def __init__(
        self,
        teachings: Sequence[Teaching],
        trusted: Sequence[bool],
        *,
        kind: Kind = "forward_kl",
        temperature: float = 2.0,
        ce_weight: float = 0.5,
        beta: float = 0.5,
    ) -> None:
        """`teachings` and `trusted` have one entry an example, in the order of the split."""
        self.kind, self.temperature = kind, temperature
        self.ce_weight, self.beta = ce_weight, beta
        positions = torch.tensor([len(item.tail) for item in teachings])
        self._first = positions.cumsum(0) - positions
        self._trusted = torch.tensor(list(trusted))
        self._all = joined(teachings)

    def __call__(self, logits: torch.Tensor, learned: Learned) -> torch.Tensor:
        """Sum over tokens, for float32 logits `[n, vocabulary]`."""
        example = learned.example.cpu()
        rows = self._first[example] + learned.place.cpu()
        teacher = replace(
            self._all,
            ids=self._all.ids[rows],
            logits=self._all.logits[rows],
            tail=self._all.tail[rows],
        ).to(logits.device)
        far = divergence(self.kind, logits, teacher, temperature=self.temperature, beta=self.beta)
        weight = self.ce_weight * self._trusted[example].to(logits.device).float()
        entropy = nn.functional.cross_entropy(logits, learned.wanted, reduction="none")
        return (weight * entropy + (1 - weight) * self.temperature**2 * far).sum()


def in_order(
    kept: dict[str, Teaching], names: Sequence[str], learned: Sequence[int]
) -> list[Teaching]:
    """The teachings of these samples, checked against how many tokens each learns.

    Raises `TrainingError` for a sample that the cache lacks or that was cut differently.
    """
    found = []
    for name, count in zip(names, learned, strict=True):
        teaching = kept.get(name)
        if teaching is None or len(teaching.tail) != count:
            what = "lacks" if teaching is None else "was made for another cut of"
            raise TrainingError(
                f"the teacher's cache {what} example '{name}'; remove the cache and run again"
            )
        found.append(teaching)
    return found

"""What a training step makes small: a loss at the tokens that are learned, and only there.

    total, hits = Objective(model)(batch)
    total, hits = Objective(model, loss=CrossEntropy(label_smoothing=0.1))(batch)

A batch is one packed row. Only hidden states whose next token is learned reach the output layer.
Another loss (a distance to a teacher, say) is another `Loss`; something that needs more than the
logits is another module with the same `forward`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from factory.training.chat import Batch
from factory.training.errors import TrainingError
from factory.training.loss import CrossEntropy, Loss, over_vocabulary


class Objective(nn.Module):
    """Sum of a loss over learned tokens of a causal language model, PEFT-wrapped or not."""

    def __init__(
        self, model: Any, loss: Loss | None = None, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or CrossEntropy()
        self.autocast = autocast
        _refuse_what_is_more_than_a_matrix(model)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss summed over learned tokens, and per example whether all of them are the argmax."""
        with self._precision(batch.ids.device):
            causal = getattr(self.model, "get_base_model", lambda: self.model)()
            output = causal.base_model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                layout=batch.layout,
                use_cache=False,
            )
            hidden = output.last_hidden_state[0].index_select(0, batch.at)
        if self.autocast is not None:
            hidden = hidden.to(self.autocast)
        head = causal.get_output_embeddings()
        total, said = over_vocabulary(hidden, head.weight, self.loss, batch.learned)
        missed = torch.zeros(batch.size, dtype=torch.long, device=hidden.device)
        missed.index_add_(0, batch.row, (said != batch.learned.wanted).long())
        return total, missed == 0

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


def _refuse_what_is_more_than_a_matrix(model: Any) -> None:
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise TrainingError(
                f"the model changes its logits after the output layer ({key}), "
                "which training does not support; choose another base model"
            )
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None or hasattr(head, "base_layer"):
        raise TrainingError(
            "the output layer has a bias or an adapter of its own, which training does not "
            "support; leave it out of target_modules or choose another base model"
        )

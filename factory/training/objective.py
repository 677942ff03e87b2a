"""The loss of a batch, computed only where something is learned.

    loss, hits = Objective(model)(batch.prefix, batch.ids, batch.targets)

A beginning that all conversations share (the system prompt) passes through the network once and
its keys and values are used by every row, gradients included: the same mathematics as repeating
it, for a fraction of the work. Only hidden states whose next token is learned reach the output
layer, so that no logits of `[batch, length, vocabulary]` are ever held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from factory.training.chat import IGNORED
from factory.training.errors import TrainingError


class Objective(nn.Module):
    """Sum of the cross-entropy over learned tokens of a PEFT-wrapped causal language model."""

    def __init__(self, model: Any, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        _refuse_scaled_logits(model.config)

    def forward(
        self, prefix: torch.Tensor, ids: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss summed over learned tokens, and per row whether all of them are the argmax."""
        causal = self.model.get_base_model()
        backbone = causal.base_model
        past = None
        if prefix.shape[1]:
            past = backbone(input_ids=prefix, use_cache=True).past_key_values
            past.batch_repeat_interleave(ids.shape[0])
        output = backbone(input_ids=ids, past_key_values=past, use_cache=past is not None)
        learned = targets[:, 1:] != IGNORED
        hidden = output.last_hidden_state[:, :-1][learned]
        logits = causal.get_output_embeddings()(hidden).float()
        wanted = targets[:, 1:][learned]
        loss = nn.functional.cross_entropy(
            logits, wanted, reduction="sum", label_smoothing=self.label_smoothing
        )
        missed = torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)
        rows = learned.nonzero()[:, 0]
        missed.index_add_(0, rows, (logits.detach().argmax(-1) != wanted).long())
        return loss, missed == 0


def _refuse_scaled_logits(config: Any) -> None:
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise TrainingError(
                f"the model changes its logits after the output layer ({key}), "
                "which training does not support; choose another base model"
            )

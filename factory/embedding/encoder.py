"""The real encoder: a BERT-like transformer with mean pooling, for `/v1/embeddings`.

    encoder = Encoder.load(folder)
    encoder.encode(["near the data", "far away"])          # float32 (2, 384), unit length

Sentence-transformers' recipe for all-MiniLM-L6-v2 (mean over the tokens, unit length) in plain
transformers. A text is cut at 256 tokens, as the model was trained; `count_tokens` counts what is
really read. Texts go through in batches of similar length, bounded in tokens, so that little is
spent on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.embedding.errors import EmbeddingError

MAX_TOKENS = 256
"""Tokens of a text that count, its two special tokens included; the rest is cut off."""

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""


class Encoder:
    """Text to unit vectors by a transformer. One call at a time."""

    __slots__ = ("_model", "_tokenizer", "dimensions")

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """A transformers encoder and its fast tokenizer."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.dimensions = int(model.config.hidden_size)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read a pulled folder of safetensors. Raises `EmbeddingError` when it is no encoder."""
        from transformers import AutoModel, AutoTokenizer

        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers has no error of its own for a bad folder
            raise EmbeddingError(f"'{folder}' cannot be read as an encoder: {error}") from error
        if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None:
            raise EmbeddingError(f"'{folder}' has no fast tokenizer with a padding token")
        return cls(model, tokenizer)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that are read, at most `MAX_TOKENS` each."""
        return [len(ids) for ids in self._ids(texts)]

    def encode(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> NDArray[np.float32]:
        """Float32 (n, dimensions) of unit length, in the order of `texts`."""
        import torch

        ids = self._ids(texts)
        out = np.zeros((len(ids), self.dimensions), dtype=np.float32)
        pad = self._tokenizer.pad_token_id
        for rows in batches([len(one) for one in ids], batch_tokens):
            width = max(len(ids[row]) for row in rows)
            tokens = torch.full((len(rows), width), pad, dtype=torch.long)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = torch.tensor(ids[row])
                mask[place, : len(ids[row])] = 1
            with torch.inference_mode():
                states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(states.dtype)
                mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
                unit = torch.nn.functional.normalize(mean.float(), dim=-1)
            out[rows] = unit.numpy()
        return out

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        read = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
        ids: list[list[int]] = read["input_ids"]
        return ids


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length: count times longest is at most `batch_tokens`.

    A text longer than that stands alone. Every index occurs exactly once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

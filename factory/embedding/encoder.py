"""The real encoder: a transformer with mean pooling, for `/v1/embeddings` and for the router.

    encoder = Encoder.load(folder)
    encoder.encode(["near the data", "far away"])          # float32 (2, 384), unit length
    Encoder.load(folder, layers=8)                         # of a language model, its lower layers

Sentence-transformers' recipe for all-MiniLM-L6-v2 (mean over the tokens, unit length) in plain
transformers. A text is cut at 256 tokens, as the model was trained; `count_tokens` counts what is
really read. Texts go through in batches of similar length, bounded in tokens, so that little is
spent on padding.

With `layers` only so many of the lower layers are kept, of a language model too: they see how a
question is put, which tells more of its difficulty than what it is about. Of a long text the
middle is then left out instead of the end, where the question often stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.embedding.errors import EmbeddingError

MAX_TOKENS = 256
"""Tokens of a text that count, its two special tokens included; the rest is cut off."""

_LONGEST = 16
"""Characters of a token, at most, for a first cut of a very long text."""

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""


class Encoder:
    """Text to unit vectors by a transformer. One call at a time."""

    __slots__ = ("_lower", "_model", "_tokenizer", "dimensions")

    def __init__(self, model: Any, tokenizer: Any, lower: bool = False) -> None:
        """A transformers model and its fast tokenizer; `lower` when its upper layers are gone."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._lower = lower
        self.dimensions = int(model.config.hidden_size)

    @classmethod
    def load(cls, folder: Path, layers: int | None = None) -> Encoder:
        """Read a pulled folder of safetensors, all of it or its lower `layers`.

        Raises `EmbeddingError` when it is no encoder, or has fewer layers.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers has no error of its own for a bad folder
            raise EmbeddingError(f"'{folder}' cannot be read as an encoder: {error}") from error
        if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None:
            raise EmbeddingError(f"'{folder}' has no fast tokenizer with a padding token")
        if layers is not None:
            _cut(model, layers, folder)
        return cls(model, tokenizer, lower=layers is not None)

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
                states = states.float()
                weights = mask.unsqueeze(-1).to(states.dtype)
                mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
                unit = torch.nn.functional.normalize(mean, dim=-1)
            out[rows] = unit.numpy()
        return out

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if not self._lower:
            read = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
            ids: list[list[int]] = read["input_ids"]
            return ids
        half = MAX_TOKENS // 2
        whole: list[list[int]] = self._tokenizer([_ends(text) for text in texts])["input_ids"]
        # A text without a token still needs one state.
        whole = [one or [self._tokenizer.pad_token_id] for one in whole]
        return [one if len(one) <= MAX_TOKENS else one[:half] + one[-half:] for one in whole]


def lower(folder: Path) -> int:
    """A quarter of a stored model's layers, at least one: those that a router reads with.

    Raises `EmbeddingError` when the folder does not say how many there are.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        return max(round(int(config["num_hidden_layers"]) / 4), 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(
            f"'{folder}' does not say in config.json how many layers it has"
        ) from error


def _ends(text: str) -> str:
    """The beginning and the end of a text that is too long to be tokenized only to be cut."""
    most = MAX_TOKENS * _LONGEST
    return text if len(text) <= 2 * most else f"{text[:most]} {text[-most:]}"


def _cut(model: Any, layers: int, folder: Path) -> None:
    """Take away all but the lower layers, and the norm that belongs to the last one."""
    from torch.nn import Identity, ModuleList

    count = int(model.config.num_hidden_layers)
    stacks = [m for m in model.modules() if isinstance(m, ModuleList) and len(m) == count]
    if not 1 <= layers <= count or not stacks:
        raise EmbeddingError(
            f"'{folder}' has {count} layers, so it cannot be used with the lower {layers}: "
            f"give 1 to {count}"
        )
    del stacks[0][layers:]
    model.config.num_hidden_layers = layers
    if layers < count and hasattr(model, "norm"):
        model.norm = Identity()


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

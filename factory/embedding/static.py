"""The static embedder: a vector per token, averaged. Microseconds a text, no neural network.

    embedder = StaticEmbedder.load(folder)
    embedder.encode(["How do I reset my password?"])      # float32 (1, 256), unit length

The folder is a model2vec model, as `factory.embedding.distill` makes it. `StaticModel.encode`
sets up truncation and batches on every call; a single text is about three times faster when the
tokenizer and the matrix are used directly, so that is done here (same numbers, in float32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from factory.embedding.errors import EmbeddingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 512
"""Tokens of a text that count; the rest is cut off."""

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class StaticEmbedder:
    """Text to unit vectors by averaging token vectors. Safe to share between threads."""

    __slots__ = ("_ignored", "_tokenizer", "_vectors", "dimensions", "hash")

    def __init__(self, vectors: NDArray[np.float32], tokenizer: Tokenizer, hash: str) -> None:
        """`vectors` is float32 (vocabulary, dimensions), a row for each id of `tokenizer`."""
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        unknown = tokenizer.token_to_id("[UNK]")
        self._ignored = -1 if unknown is None else unknown
        self.dimensions = int(vectors.shape[1])
        self.hash = hash
        """sha256 over the folder's files: vectors of different hashes do not compare."""

    @classmethod
    def load(cls, folder: Path) -> StaticEmbedder:
        """Read a model2vec folder, about 0.3 s for 15 MB.

        Raises `EmbeddingError` when a file is missing or damaged.
        """
        from model2vec import StaticModel

        folder = Path(folder)
        for name in _FILES:
            if not (folder / name).is_file():
                raise EmbeddingError(
                    f"'{folder}' is no static embedder: it has no {name}; "
                    "make it again with `factory models pull`"
                )
        try:
            model = StaticModel.from_pretrained(folder)
        except Exception as error:  # safetensors, tokenizers and json each raise their own
            raise EmbeddingError(
                f"'{folder}' cannot be read as a static embedder: {error}"
            ) from error
        if model.token_mapping is not None or model.weights is not None:
            raise EmbeddingError(f"'{folder}' has a quantized vocabulary, which is not supported")
        return cls(model.embedding.astype(np.float32), model.tokenizer, _hash(folder))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 (n, dimensions), each row of unit length; a text without a known token is zero.

        Only the first `MAX_TOKENS` tokens of a text count.
        """
        out = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            self._write(text, out[row])
        return out

    def encode_one(self, text: str) -> NDArray[np.float32]:
        """Float32 (dimensions,): the same as `encode([text])[0]`, with less ado."""
        out = np.zeros(self.dimensions, dtype=np.float32)
        self._write(text, out)
        return out

    def _write(self, text: str, out: NDArray[np.float32]) -> None:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._ignored in ids:
            ids = [one for one in ids if one != self._ignored]
        if not ids:
            return
        np.add.reduce(self._vectors.take(ids, axis=0), axis=0, out=out)
        length = float(out.dot(out)) ** 0.5
        if length > 0:
            out *= 1.0 / length


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()

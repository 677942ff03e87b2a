"""A small world in which the difficulty of a prompt can be learned."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from factory.routing.labels import Table

EASY = [
    "reset",
    "password",
    "invoice",
    "printer",
    "delivery",
    "address",
    "opening",
    "hours",
    "refund",
    "voucher",
]
HARD = [
    "prove",
    "theorem",
    "derive",
    "integral",
    "eigenvalue",
    "lemma",
    "asymptotic",
    "manifold",
    "operator",
    "bound",
]
FILLER = [
    "please",
    "could",
    "you",
    "tell",
    "me",
    "about",
    "the",
    "thing",
    "that",
    "happened",
    "with",
    "our",
]


class WordEmbedder:
    """Every word has a fixed random vector; a text is their mean, at unit length."""

    hash = "words"
    dimensions = 32

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self.encode_one(text) for text in texts]).astype(np.float32)

    def encode_one(self, text: str) -> NDArray[np.float32]:
        vectors = [
            np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.dimensions)
            for word in text.lower().split()
        ] or [np.zeros(self.dimensions)]
        mean = np.mean(vectors, axis=0)
        return (mean / max(np.linalg.norm(mean), 1e-9)).astype(np.float32)


class KnowingEmbedder:
    """Sees of a prompt whether it is hard, which the others have to learn word by word."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        hard = np.array([any(word in HARD for word in text.split()) for text in texts])
        return np.stack([hard, ~hard, np.ones(len(texts))], axis=1).astype(np.float32)


def labelled(n: int, seed: int = 0, tiers: int = 2) -> Table:
    """Prompts about easy and hard things; a small model fails most of the hard ones."""
    rng = np.random.default_rng(seed)
    prompts, good = [], []
    for number in range(n):
        hard = rng.random() < 0.4
        words = [*rng.choice(HARD if hard else EASY, 3), *rng.choice(FILLER, 5), f"case {number}"]
        prompts.append(" ".join(rng.permutation(words)))
        chances = [0.25 if hard else 0.9, 0.7 if hard else 0.93, 0.95][:tiers]
        good.append(rng.random(tiers) < chances)
    return Table(
        tiers=tuple(range(1, tiers + 1)),
        good=np.array(good, dtype=np.float32),
        prompts=tuple(prompts),
    )


@pytest.fixture(scope="session")
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture(scope="session")
def knowing() -> KnowingEmbedder:
    return KnowingEmbedder()


@pytest.fixture(scope="session")
def world() -> Callable[..., Table]:
    """`labelled`, for tests that want other sizes, seeds and tiers."""
    return labelled


@pytest.fixture(scope="session")
def table() -> Table:
    return labelled(900)

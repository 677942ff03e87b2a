"""How surely two questions mean the same: the guard first, then a small logistic model.

    model = PairModel(embedder)
    model.compare("Can I cancel my order?", "Is it possible to cancel an order?").score   # 0.97

A pair that the guard tells apart scores 0. The rest gets a probability from a few cheap
features; `weights.json` holds the fitted numbers and `fitting.py` makes it again. The score orders
pairs; what score is enough is the calibration's business (`calibrate.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from factory.gateway.semantic.differences import Alignment, Verdict, align, judge
from factory.gateway.semantic.lexicon import Lexicon
from factory.gateway.semantic.reading import Reading, read

FEATURES = (
    "cosine",
    "covered",
    "rest_verbs",
    "rest_things",
    "inserted",
    "asks_same",
    "roles",
    "identical_words",
)
"""Names of the features, in the order of the weights."""


class Embedder(Protocol):
    """The part of `factory.embedding.StaticEmbedder` that is needed here."""

    dimensions: int
    hash: str

    def encode_one(self, text: str) -> NDArray[np.float32]:
        """Float32 (dimensions,), unit length."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A fitted logistic model over `FEATURES`."""

    slopes: tuple[float, ...]
    intercept: float

    @classmethod
    @lru_cache(maxsize=1)
    def default(cls) -> Weights:
        """The shipped weights. Raises `ValueError` when they are of other features."""
        file = resources.files("factory.gateway.semantic").joinpath("weights.json")
        raw = json.loads(file.read_text("utf-8"))
        if tuple(raw["features"]) != FEATURES:
            raise ValueError("weights.json was fitted for other features; run the fitting again")
        return cls(tuple(raw["slopes"]), raw["intercept"])


@dataclass(frozen=True, slots=True)
class Compared:
    """One pair: what the guard said, and the model's score."""

    score: float
    """0 when the guard told them apart, 1 for the same text, else a probability."""
    verdict: Verdict
    features: tuple[float, ...]
    """Empty when the guard decided."""


class PairModel:
    """Compares two questions."""

    def __init__(self, embedder: Embedder, weights: Weights | None = None) -> None:
        """The shipped weights, unless told others."""
        self._embedder = embedder
        self._weights = weights or Weights.default()
        self._lexicon = Lexicon.default()

    def read(self, question: str) -> Reading:
        """The reading that `compare` takes; keep it to spare the work."""
        return read(question, self._lexicon)

    def compare(self, a: str | Reading, b: str | Reading, cosine: float | None = None) -> Compared:
        """Guard and score of a pair; `cosine` of the two texts when it is known already."""
        first = self.read(a) if isinstance(a, str) else a
        second = self.read(b) if isinstance(b, str) else b
        if first.text == second.text:
            return Compared(1.0, Verdict(True, ()), (1.0,) * len(FEATURES))
        alignment = align(first, second, self._lexicon)
        verdict = judge(first, second, alignment, self._lexicon)
        if not verdict.same:
            return Compared(0.0, verdict, ())
        if cosine is None:
            cosine = float(
                self._embedder.encode_one(first.text) @ self._embedder.encode_one(second.text)
            )
        features = self._features(first, second, alignment, cosine)
        return Compared(self._score(features), verdict, features)

    def _score(self, features: Sequence[float]) -> float:
        logit = self._weights.intercept + sum(
            slope * value for slope, value in zip(self._weights.slopes, features, strict=True)
        )
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, logit))))

    def _features(
        self, a: Reading, b: Reading, alignment: Alignment, cosine: float
    ) -> tuple[float, ...]:
        total_a = sum(word.weight for word in a.words) or 1e-6
        total_b = sum(word.weight for word in b.words) or 1e-6
        rest_a = [a.words[i] for i in alignment.rest_a]
        rest_b = [b.words[j] for j in alignment.rest_b]
        left_a, left_b = sum(w.weight for w in rest_a), sum(w.weight for w in rest_b)
        covered = min(1 - left_a / total_a, 1 - left_b / total_b)
        moved = sum(a.words[i].role != b.words[j].role for i, j in alignment.pairs)
        rest = (*rest_a, *rest_b)
        return (
            cosine,
            covered,
            sum(word.weight for word in rest if word.acts),
            sum(word.weight for word in rest if not word.acts),
            max(_inserted(a, b, alignment)),
            float(bool(a.asks) and a.asks == b.asks),
            moved / len(alignment.pairs) if alignment.pairs else 0.0,
            float(not rest),
        )


def _inserted(a: Reading, b: Reading, alignment: Alignment) -> tuple[float, float]:
    """The rarest word put between two that stand side by side in the other question, each way.

    Such a word narrows what follows it: "card", "virtual card".
    """
    forth = dict(alignment.pairs)
    back = {j: i for i, j in alignment.pairs}
    return (
        _narrows(a, alignment.rest_a, forth),
        _narrows(b, alignment.rest_b, back),
    )


def _narrows(reading: Reading, rest: Sequence[int], partner: dict[int, int]) -> float:
    most = 0.0
    for place in rest:
        after = partner.get(place + 1)
        before = partner.get(place - 1)
        at_edge = place == 0 and after == 0
        if at_edge or (before is not None and after is not None and after - before == 1):
            most = max(most, reading.words[place].weight)
    return most

"""A prompt as the members of the learned router see it.

    ranks = Ranks.fit(np.stack([ranked(text) for text in texts]))
    seen = view(text, embedding, static=256, ranks=ranks)
    seen.rows["words"]; seen.vector; seen.deep; seen.ranks; seen.form

Hashed n-grams, the static embedding, a neural encoder's vector where there is one, the ranks of
what can be counted in the text, and the counts themselves beside the vectors, for trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from factory.routing.choices import choices
from factory.routing.errors import RoutingError
from factory.routing.members import Floats, Row
from factory.routing.ngrams import characters, clip, words
from factory.routing.surface import surface

CHIEF = 64
"""Directions of the static embedding that trees see; a distilled one has the chief ones first."""

QUANTILES = 33


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Where each of a prompt's counts lies among those of the labelled prompts."""

    edges: Floats
    """(QUANTILES, columns): each count's quantiles."""
    scale: Floats
    """(1): brings a row of ranks to a mean length of about 1."""

    @classmethod
    def fit(cls, counts: Floats) -> Ranks:
        """`counts` is (n, columns). A count that never changes takes no weight."""
        edges = np.quantile(counts, np.linspace(0, 1, QUANTILES), axis=0).astype(np.float32)
        varying = int((edges[0] < edges[-1]).sum())
        # Ranks in [-1, 1] have a mean square of a third.
        return cls(edges, np.array([(3 / max(varying, 1)) ** 0.5], np.float32))

    def of(self, counts: Floats) -> Floats:
        """Float32 (columns,): the middle rank of each count, in [-1, 1], scaled."""
        below = (self.edges < counts).sum(axis=0) + (self.edges <= counts).sum(axis=0)
        ranks: Floats = (below / np.float32(len(self.edges)) - 1).astype(np.float32) * self.scale
        return ranks

    def arrays(self) -> dict[str, Floats]:
        """What has to be stored."""
        return {"edges": self.edges, "scale": self.scale}

    @classmethod
    def parse(cls, arrays: Mapping[str, Floats], columns: int) -> Ranks:
        """The inverse of `arrays`. Raises `RoutingError` when the shapes do not fit."""
        for name, shape in {"edges": (QUANTILES, columns), "scale": (1,)}.items():
            array = arrays.get(name)
            if array is None or array.shape != shape or not np.isfinite(array).all():
                raise RoutingError(f"the stored router's ranks have no valid '{name}'")
        return cls(arrays["edges"], arrays["scale"])


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the members look at."""

    rows: Mapping[str, Row]
    """Hashed n-grams by member; empty for a router without texts."""
    vector: Floats
    """The static embedding."""
    deep: Floats
    """An encoder's vector; empty for a router without one."""
    ranks: Floats | None
    """(columns,); None for a router without texts."""
    form: Floats
    """What the trees look at; an encoder's vector is the last part of it."""


def ranked(text: str) -> Floats:
    """Float32 (columns,): the counts that are ranked. The form of choices is for trees alone."""
    return surface(clip(text))


def view(text: str | None, vector: Floats, static: int, ranks: Ranks | None) -> View:
    """`vector` has the static embedding in its first `static` places, an encoder's after it.

    Raises `RoutingError` when `ranks` are there, that is, for a router of texts, and no text is.
    """
    vector = vector.astype(np.float32, copy=False)
    first, rest = vector[:static], vector[static:]
    if ranks is None:
        return View({}, first, rest, None, np.concatenate([first[:CHIEF], rest]))
    if text is None:
        raise RoutingError("this router was fitted on texts and needs the prompt's text")
    text = clip(text)
    small, counts = text.lower(), surface(text)
    rows = {"words": words(small), "characters": characters(small)}
    form = np.concatenate([counts, choices(text), first[:CHIEF], rest])
    return View(rows, first, rest, ranks.of(counts), form)

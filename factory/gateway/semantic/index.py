"""The questions of one scope in memory: vectors in one matrix, the nearest found by a product.

    index = Index(dimensions=256, max_entries=20_000, ttl_s=3600, monotonic=time.monotonic)
    index.add(context_hash, vector, entry)
    index.candidates(context_hash, vector, k=8, least=0.4)     # [(entry, cosine)], best first

A static embedding comes out of PCA, so its first coordinates hold most of a similarity: with many
rows they choose whom the rest is computed for. That needs a quarter of the memory traffic, which
is what such a product costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.gateway.semantic.reading import Reading

PREFIX = 64
"""Coordinates of the first look."""

SHORTLIST = 96
"""Rows that the first look leaves."""

_SMALL = 1024
"""Rows up to which one full product is cheaper than two looks."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A question whose answer is kept elsewhere."""

    question: str
    """As it was asked."""
    reading: Reading
    """What the guard compares."""
    key: bytes
    """Where its answer is."""


class Index:
    """Bounded in number (the least recently used goes) and in age. Not for several threads."""

    def __init__(
        self, dimensions: int, max_entries: int, ttl_s: float, monotonic: Callable[[], float]
    ) -> None:
        """An empty index; memory grows with its rows, up to `max_entries`."""
        self._dimensions = dimensions
        self._max = max_entries
        self._ttl = ttl_s
        self._monotonic = monotonic
        self._vectors = np.zeros((0, dimensions), dtype=np.float32)
        self._heads = np.zeros((0, min(PREFIX, dimensions)), dtype=np.float32)
        self._groups = np.zeros(0, dtype=np.int64)
        self._expires = np.zeros(0, dtype=np.float64)
        self._entries: list[Entry | None] = []
        self._used: OrderedDict[int, None] = OrderedDict()
        self._free: list[int] = []
        self._contexts: dict[bytes, tuple[int, set[int]]] = {}
        self._of_row: dict[int, bytes] = {}
        self._rows: dict[tuple[bytes, bytes], int] = {}
        self._next_group = 1

    def __len__(self) -> int:
        return len(self._used)

    def add(self, context: bytes, vector: NDArray[np.float32], entry: Entry) -> None:
        """Keep a question; the same key in the same context is replaced."""
        known = self._rows.get((context, entry.key))
        if known is not None:
            self._drop(known)
        while len(self._used) >= self._max:
            self._drop(next(iter(self._used)))
        row = self._free.pop() if self._free else self._grow()
        if context not in self._contexts:
            self._contexts[context] = (self._next_group, set())
            self._next_group += 1
        group, rows = self._contexts[context]
        rows.add(row)
        self._vectors[row] = vector
        self._heads[row] = vector[: self._heads.shape[1]]
        self._groups[row] = group
        self._expires[row] = self._monotonic() + self._ttl
        self._entries[row] = entry
        self._of_row[row] = context
        self._rows[(context, entry.key)] = row
        self._used[row] = None

    def candidates(
        self, context: bytes, vector: NDArray[np.float32], k: int, least: float
    ) -> list[tuple[Entry, float]]:
        """Up to `k` live entries of the context with a cosine of at least `least`, best first."""
        if context not in self._contexts:
            return []
        group, rows = self._contexts[context]
        if len(rows) <= _SMALL:
            chosen = np.fromiter(rows, dtype=np.int64, count=len(rows))
        else:
            rows_used = len(self._entries)
            head = vector[: self._heads.shape[1]]
            scores = _product(self._heads[:rows_used], head)
            if len(rows) < len(scores):
                scores[self._groups[:rows_used] != group] = -2.0
            chosen = np.argpartition(scores, -SHORTLIST)[-SHORTLIST:]
            chosen = chosen[self._groups[chosen] == group]
        exact = _product(self._vectors[chosen], vector)
        order = np.argsort(-exact)
        now = self._monotonic()
        found: list[tuple[Entry, float]] = []
        for place in order:
            cosine, row = float(exact[place]), int(chosen[place])
            if cosine < least or len(found) == k:
                break
            if self._expires[row] <= now:
                self._drop(row)
                continue
            entry = self._entries[row]
            assert entry is not None, "a row of a context has an entry"
            found.append((entry, cosine))
        return found

    def touch(self, context: bytes, key: bytes) -> None:
        """Mark as used just now, so that it is among the last to go."""
        row = self._rows.get((context, key))
        if row is not None:
            self._used.move_to_end(row)

    def remove(self, context: bytes, key: bytes) -> None:
        """Forget one question, for example because its answer is gone."""
        row = self._rows.get((context, key))
        if row is not None:
            self._drop(row)

    def _grow(self) -> int:
        row = len(self._entries)
        if row == len(self._vectors):
            size = min(self._max, max(64, 2 * row))
            self._vectors = _longer(self._vectors, size)
            self._heads = _longer(self._heads, size)
            self._groups = _longer(self._groups, size)
            self._expires = _longer(self._expires, size)
        self._entries.append(None)
        return row

    def _drop(self, row: int) -> None:
        context = self._of_row.pop(row)
        entry = self._entries[row]
        assert entry is not None, "a used row has an entry"
        del self._rows[(context, entry.key)]
        del self._used[row]
        rows = self._contexts[context][1]
        rows.discard(row)
        if not rows:
            del self._contexts[context]
        self._entries[row] = None
        self._groups[row] = 0
        self._free.append(row)


def _product(matrix: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix times the vector on one thread.

    `@` would start BLAS threads, which take milliseconds when the other cores are busy.
    """
    result: NDArray[np.float32] = np.einsum("ij,j->i", matrix, vector)
    return result


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    grown = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown

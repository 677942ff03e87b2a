"""The parts of the learned router, each a regression on another view of a prompt.

    member = Hashed.fit(rows, good, buckets=1 << 16, penalty=20.0)    # n-grams, tf-idf
    member = Kernel.fit(vectors, ranks, good, 6.0, width=1.0, weight=0.5, rng=rng)
    member = Neighbours.fit(vectors, ranks, good, 160, weight=1.0, rng=rng)
    member.one(...)      # float64 (tiers,)

They are fitted with scikit-learn and SciPy and applied with NumPy alone. A label that is NaN is
left out of its tier's fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.routing.errors import RoutingError

Floats = NDArray[np.float32]
Row = tuple[NDArray[np.int64], Floats]
"""Buckets and counts of one text, as `ngrams` gives them."""

LANDMARKS = 1000
"""Prompts that a kernel compares with."""

REFERENCES = 5000
"""Labelled prompts among which neighbours are looked for."""

_BLOCK = 1024
_JITTER = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Hashed:
    """Ridge regression on tf-idf weighted hashed n-grams."""

    idf: Floats
    """(buckets)"""
    coef: Floats
    """(buckets, tiers), the idf multiplied in."""
    prior: Floats
    """(tiers): the mean label."""

    @classmethod
    def fit(cls, rows: Sequence[Row], good: Floats, buckets: int, penalty: float) -> Hashed:
        """Smooth idf, logarithmic counts, rows of unit length; squared loss, L2 `penalty`."""
        from scipy.sparse import csr_matrix, diags
        from sklearn.linear_model import Ridge

        ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
        counts = np.concatenate([count for _, count in rows]) if rows else np.zeros(0)
        ids = np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0, np.int64)
        matrix = csr_matrix((1 + np.log(counts), ids, ends), shape=(len(rows), buckets))
        seen = np.bincount(ids, minlength=buckets)
        idf = (np.log((1 + len(rows)) / (1 + seen)) + 1).astype(np.float32)
        matrix = matrix @ diags(idf)
        lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
        matrix = (diags(1 / np.maximum(lengths, 1e-9)) @ matrix).tocsr()
        coef = np.zeros((buckets, good.shape[1]), dtype=np.float32)
        prior = np.zeros(good.shape[1], dtype=np.float32)
        for tiers, known in groups(good):
            model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3)
            model.fit(matrix[known], good[known][:, tiers])
            coef[:, tiers] = np.atleast_2d(model.coef_).T
            prior[tiers] = model.intercept_
        return cls(idf, coef * idf[:, None], prior)

    def one(self, row: Row) -> Floats:
        """Float32 (tiers,) for one text."""
        ids, counts = row
        if not len(ids):
            return self.prior
        weights = 1 + np.log(counts)
        scaled = weights * self.idf.take(ids)
        out: Floats = weights @ self.coef.take(ids, axis=0)
        out /= float(scaled @ scaled) ** 0.5
        out += self.prior
        return out

    def many(self, rows: Sequence[Row]) -> Floats:
        """Float32 (n, tiers)."""
        return np.stack([self.one(row) for row in rows])

    def arrays(self) -> dict[str, Floats]:
        """What has to be stored."""
        return {"idf": self.idf, "coef": self.coef, "prior": self.prior}

    @classmethod
    def parse(cls, arrays: Mapping[str, Floats], buckets: int, tiers: int) -> Hashed:
        """The inverse of `arrays`. Raises `RoutingError` when the shapes do not fit."""
        shapes = {"idf": (buckets,), "coef": (buckets, tiers), "prior": (tiers,)}
        return cls(**_checked(arrays, shapes))


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Ridge regression with a Gaussian kernel on dense vectors, by landmarks (Nystroem)."""

    centre: Floats
    """(dimensions): the mean vector, taken away before the length is made 1."""
    landmarks: Floats
    """(landmarks, dimensions + ranks)"""
    coef: Floats
    """(landmarks, tiers)"""
    prior: Floats
    """(tiers)"""
    width: Floats
    """(1): the kernel is exp(-width * squared distance)."""
    weight: Floats
    """(1): length of the ranks beside the embedding's, which is 1; 0 leaves them out."""

    @classmethod
    def fit(
        cls,
        vectors: Floats,
        ranks: Floats | None,
        good: Floats,
        penalty: float,
        width: float,
        weight: float,
        rng: np.random.Generator,
    ) -> Kernel:
        """`vectors` (n, dimensions), `ranks` (n, columns) or None, `good` (n, tiers)."""
        centre = vectors.mean(0).astype(np.float32)
        scalars = (np.array([width], np.float32), np.array([weight], np.float32))
        draft = cls(centre, centre[None], centre, centre, *scalars)
        inputs = draft._inputs(vectors, ranks)
        landmarks = inputs[rng.permutation(len(inputs))[:LANDMARKS]]
        nodes = gaussian(landmarks, landmarks, width).astype(np.float64)
        coef = np.zeros((len(landmarks), good.shape[1]), dtype=np.float32)
        prior = np.zeros(good.shape[1], dtype=np.float32)
        for tiers, known in groups(good):
            labels = good[known][:, tiers].astype(np.float64)
            mean = labels.mean(0)
            left = penalty * (nodes + _JITTER * np.eye(len(nodes)))
            right = np.zeros((len(nodes), len(tiers)))
            for start in range(0, len(known), _BLOCK):
                rows = known[start : start + _BLOCK]
                near = gaussian(inputs[rows], landmarks, width)
                left += near.T @ near
                right += near.T @ (labels[start : start + _BLOCK] - mean)
            coef[:, tiers] = np.linalg.solve(left, right)
            prior[tiers] = mean
        return cls(centre, landmarks, coef, prior, *scalars)

    def one(self, vector: Floats, ranks: Floats | None) -> Floats:
        """Float32 (tiers,) for one prompt."""
        out: Floats = self.many(vector[None], None if ranks is None else ranks[None])[0]
        return out

    def many(self, vectors: Floats, ranks: Floats | None) -> Floats:
        """Float32 (n, tiers)."""
        out = np.empty((len(vectors), len(self.prior)), dtype=np.float32)
        for start in range(0, len(vectors), _BLOCK):
            part = slice(start, start + _BLOCK)
            inputs = self._inputs(vectors[part], None if ranks is None else ranks[part])
            near = gaussian(inputs, self.landmarks, float(self.width[0]))
            out[part] = near @ self.coef + self.prior
        return out

    def _inputs(self, vectors: Floats, ranks: Floats | None) -> Floats:
        return _joined(unit(vectors - self.centre), ranks, self.weight)

    def arrays(self) -> dict[str, Floats]:
        """What has to be stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, arrays: Mapping[str, Floats], dimensions: int, ranks: int, tiers: int) -> Kernel:
        """The inverse of `arrays`. Raises `RoutingError` when the shapes do not fit."""
        nodes = len(arrays.get("landmarks", ()))
        shapes: dict[str, tuple[int, ...]] = {
            "centre": (dimensions,),
            "landmarks": (nodes, _columns(arrays, dimensions, ranks)),
            "coef": (nodes, tiers),
            "prior": (tiers,),
            "width": (1,),
            "weight": (1,),
        }
        return cls(**_checked(arrays, shapes))


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The nearest labelled prompts, the nearer the heavier.

    Dudani's rule ("The Distance-Weighted k-Nearest-Neighbor Rule", 1976): a weight falls in a
    straight line from the nearest to nothing at the farthest of the k.
    """

    weight: Floats
    """(1), as in `Kernel`."""
    places: Floats
    """(references, dimensions + ranks)"""
    squares: Floats
    """(references): the squared length of each place."""
    labels: Floats
    """(references, tiers)"""
    k: Floats
    """(1)"""

    @classmethod
    def fit(
        cls,
        vectors: Floats,
        ranks: Floats | None,
        good: Floats,
        k: int,
        weight: float,
        rng: np.random.Generator,
    ) -> Neighbours:
        """Keeps at most `REFERENCES` rows. A label that is NaN counts as its tier's mean."""
        kept = np.sort(rng.permutation(len(vectors))[:REFERENCES])
        labels = np.where(np.isnan(good), np.nanmean(good, axis=0), good)[kept]
        scale = np.array([weight], np.float32)
        places = _joined(unit(vectors), ranks, scale)[kept]
        k = max(min(k, len(kept) // 2), 1)
        squares = np.einsum("ij,ij->i", places, places)
        count = np.array([k], np.float32)
        return cls(scale, places, squares, labels.astype(np.float32), count)

    def one(self, vector: Floats, ranks: Floats | None) -> Floats:
        """Float32 (tiers,) for one prompt."""
        out: Floats = self.many(vector[None], None if ranks is None else ranks[None])[0]
        return out

    def many(self, vectors: Floats, ranks: Floats | None) -> Floats:
        """Float32 (n, tiers)."""
        out = np.empty((len(vectors), self.labels.shape[1]), dtype=np.float32)
        k = int(self.k[0])
        for start in range(0, len(vectors), _BLOCK):
            part = slice(start, start + _BLOCK)
            seen = None if ranks is None else ranks[part]
            inputs = _joined(unit(vectors[part]), seen, self.weight)
            # The squared distance, negated, but for the prompt's own length.
            near = 2 * (inputs @ self.places.T) - self.squares
            index = np.argpartition(near, -k, axis=1)[:, -k:]
            weights = np.take_along_axis(near, index, axis=1)
            # The tiny addition decides only when all are equally near.
            weights = weights - weights.min(axis=1, keepdims=True) + np.float32(1e-7)
            found = np.einsum("nk,nkt->nt", weights, self.labels[index])
            out[part] = found / weights.sum(axis=1, keepdims=True)
        return out

    def arrays(self) -> dict[str, Floats]:
        """What has to be stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(
        cls, arrays: Mapping[str, Floats], dimensions: int, ranks: int, tiers: int
    ) -> Neighbours:
        """The inverse of `arrays`. Raises `RoutingError` when the shapes do not fit."""
        rows = len(arrays.get("labels", ()))
        shapes = {
            "weight": (1,),
            "places": (rows, _columns(arrays, dimensions, ranks)),
            "squares": (rows,),
            "labels": (rows, tiers),
            "k": (1,),
        }
        found = cls(**_checked(arrays, shapes))
        if not 1 <= float(found.k[0]) <= rows:
            raise RoutingError("the stored router's number of neighbours does not fit its rows")
        return found


def _joined(directions: Floats, ranks: Floats | None, weight: Floats) -> Floats:
    """Vectors of unit length beside the ranks of the surface features."""
    if ranks is None or weight[0] <= 0:
        return directions
    both: Floats = np.hstack([directions, ranks * weight])
    return both


def _columns(arrays: Mapping[str, Floats], dimensions: int, ranks: int) -> int:
    """The columns of a stored member's inputs."""
    weight = arrays.get("weight", np.zeros(1, np.float32))
    return dimensions + (ranks if weight.shape == (1,) and weight[0] > 0 else 0)


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Floats = (vectors / np.maximum(lengths, 1e-9)).astype(np.float32, copy=False)
    return rows


def gaussian(left: Floats, right: Floats, width: float) -> Floats:
    """Float32 (left, right): exp(-width * squared distance)."""
    squares = np.einsum("ij,ij->i", left, left)[:, None] + np.einsum("ij,ij->i", right, right)
    near: Floats = np.exp(-width * np.maximum(squares - 2 * (left @ right.T), 0))
    return near


def groups(good: Floats) -> Iterator[tuple[list[int], NDArray[np.intp]]]:
    """Tiers that are labelled on the same rows, with those rows."""
    masks: dict[bytes, list[int]] = {}
    for tier in range(good.shape[1]):
        masks.setdefault((~np.isnan(good[:, tier])).tobytes(), []).append(tier)
    for mask, tiers in masks.items():
        yield tiers, np.flatnonzero(np.frombuffer(mask, dtype=bool))


def _checked(arrays: Mapping[str, Floats], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != np.float32:
            raise RoutingError(f"the stored router's array '{name}' is missing or has a wrong form")
        if not np.isfinite(array).all():
            raise RoutingError(f"the stored router's array '{name}' holds no finite numbers")
    return {name: arrays[name] for name in shapes}

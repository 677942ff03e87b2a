"""Extremely randomized trees on a prompt's form and the chief directions of its embedding.

    member = Trees.fit(inputs, good, leaf=8, seed=0, tail=0)     # inputs float32 (n, columns)
    member.one(row)                                              # float32 (tiers,)

Geurts, Ernst and Wehenkel, "Extremely Randomized Trees" (2006). Fitted by scikit-learn on what the
lowest tier does and on what each further tier adds, applied with NumPy alone: all trees go down one
step at a time together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.routing.errors import RoutingError
from factory.routing.members import unit
from factory.routing.stacking import steps

Floats = NDArray[np.float32]

DIRECTIONS = 64
"""Chief directions of a neural encoder's vector that the trees see in its place."""

TREES = 120
"""Trees in a forest."""

DEEPEST = 14
"""Steps from a root to the farthest leaf."""

SHARE = 0.2
"""Of the inputs, tried at each split."""

LOWEST = 0.5
"""Weight of the lowest tier's own quality beside what further tiers add, when splits are chosen."""

_BLOCK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """A forest, its nodes in one row; a leaf's children are itself."""

    centre: Floats
    """(tail): mean of the last columns, which are a vector without an order of its own."""
    basis: Floats
    """(tail, directions): the trees see these directions of that vector, at unit length."""
    roots: NDArray[np.int32]
    """(trees)"""
    inputs: NDArray[np.int32]
    """(nodes): the input that is looked at."""
    limits: Floats
    """(nodes): up to this the left child follows."""
    children: NDArray[np.int32]
    """(nodes, 2): right and left."""
    values: Floats
    """(nodes, tiers)"""

    @classmethod
    def fit(cls, inputs: Floats, good: Floats, leaf: int, seed: int, tail: int = 0) -> Trees:
        """`leaf` is the least number of prompts in a leaf, `tail` the columns that are a vector.

        A NaN counts as its tier's mean.
        """
        from sklearn.ensemble import ExtraTreesRegressor

        centre, basis = _chief(inputs[:, inputs.shape[1] - tail :])
        labels = steps(np.where(np.isnan(good), np.nanmean(good, axis=0), good))
        scale = np.array([LOWEST] + [1.0] * (good.shape[1] - 1))
        forest = ExtraTreesRegressor(
            TREES,
            min_samples_leaf=leaf,
            max_depth=DEEPEST,
            max_features=SHARE,
            random_state=seed,
        )
        forest.fit(_turned(inputs, centre, basis), labels * scale)
        roots, parts = [], []
        start = 0
        for estimator in forest.estimators_:
            tree = estimator.tree_
            own = np.arange(tree.node_count)
            leaves = tree.children_left < 0
            children = np.stack([tree.children_right, tree.children_left], axis=1)
            children = np.where(leaves[:, None], own[:, None], children) + start
            values = np.cumsum(tree.value[:, :, 0] / scale, axis=1)
            parts.append((np.maximum(tree.feature, 0), tree.threshold, children, values))
            roots.append(start)
            start += tree.node_count
        looked, limits, children, values = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return cls(
            centre,
            basis,
            np.array(roots, np.int32),
            looked.astype(np.int32),
            limits.astype(np.float32),
            children.astype(np.int32),
            values.astype(np.float32),
        )

    def one(self, row: Floats) -> Floats:
        """Float32 (tiers,) for one prompt's inputs, (columns,)."""
        place = self.roots
        pairs = self.children.reshape(-1)
        if len(self.centre):
            row = _turned(row[None], self.centre, self.basis)[0]
        for _ in range(DEEPEST):
            left = row.take(self.inputs.take(place)) <= self.limits.take(place)
            place = pairs.take(2 * place + left)
        out: Floats = self.values.take(place, axis=0).mean(axis=0)
        return out

    def many(self, rows: Floats) -> Floats:
        """Float32 (n, tiers)."""
        out = np.empty((len(rows), self.values.shape[1]), dtype=np.float32)
        pairs = self.children.reshape(-1)
        rows = _turned(rows, self.centre, self.basis)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            place = np.tile(self.roots, (len(part), 1))
            for _ in range(DEEPEST):
                seen = np.take_along_axis(part, self.inputs[place], axis=1)
                place = pairs[2 * place + (seen <= self.limits[place])]
            out[start : start + len(part)] = self.values[place].mean(axis=1)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has to be stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(
        cls, arrays: Mapping[str, NDArray[Any]], columns: int, tiers: int, tail: int = 0
    ) -> Trees:
        """The inverse of `arrays`. Raises `RoutingError` when they are no forest."""
        nodes = len(arrays.get("limits", ()))
        basis = arrays.get("basis", np.zeros((0, 0), np.float32))
        directions = basis.shape[-1] if tail else 0
        columns += directions - tail
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "centre": ((tail,), np.float32),
            "basis": ((tail, directions), np.float32),
            "roots": ((len(arrays.get("roots", ())),), np.int32),
            "inputs": ((nodes,), np.int32),
            "limits": ((nodes,), np.float32),
            "children": ((nodes, 2), np.int32),
            "values": ((nodes, tiers), np.float32),
        }
        for name, (shape, kind) in shapes.items():
            array = arrays.get(name)
            if array is None or array.shape != shape or array.dtype != kind:
                raise RoutingError(f"the stored router's trees have no valid '{name}'")
            if not np.isfinite(array).all():
                raise RoutingError(f"the stored router's trees hold no finite '{name}'")
        if not nodes or not len(arrays["roots"]):
            raise RoutingError("the stored router's trees have no nodes")
        found = cls(**{name: arrays[name] for name in shapes})
        inside = (
            0 <= found.roots.min() <= found.roots.max() < nodes
            and 0 <= found.children.min() <= found.children.max() < nodes
            and 0 <= found.inputs.min() <= found.inputs.max() < columns
        )
        if not inside:
            raise RoutingError("the stored router's trees point outside themselves")
        return found


def _chief(vectors: Floats) -> tuple[Floats, Floats]:
    """The mean of vectors (n, tail), and their chief directions (tail, directions)."""
    centre = vectors.mean(0).astype(np.float32)
    directions = unit(vectors - centre).astype(np.float64)
    _, found = np.linalg.eigh(directions.T @ directions)
    return centre, found[:, ::-1][:, :DIRECTIONS].astype(np.float32)


def _turned(inputs: Floats, centre: Floats, basis: Floats) -> Floats:
    """The inputs (n, columns) with the vector at their end seen along the chief directions."""
    if not len(centre):
        return inputs
    head, tail = inputs[:, : -len(centre)], inputs[:, -len(centre) :]
    seen: Floats = np.hstack([head, unit(tail - centre) @ basis])
    return seen

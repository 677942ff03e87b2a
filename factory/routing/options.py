"""The members of the learned router and the settings that cross-validation chooses from.

for name, choice in options(text=True, tail=0).items():
    member = choice["penalty 10"](views, good, 1.0)     # of that member, with that setting
    many(member, name, views)                           # float32 (n, tiers)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from factory.routing.members import Floats, Hashed, Kernel, Neighbours
from factory.routing.ngrams import CHARACTER_BUCKETS, WORD_BUCKETS
from factory.routing.trees import Trees
from factory.routing.views import View

Member = Hashed | Kernel | Neighbours | Trees

HASHED: dict[str, int] = {"words": WORD_BUCKETS, "characters": CHARACTER_BUCKETS}
_PENALTIES = (10.0, 30.0)
_NEIGHBOURS = tuple((k, s) for k in (40, 160, 320) for s in (0.0, 0.5, 1.0))
"""How many, and the weight of the ranks."""
_KERNELS = tuple((p, w, s) for p in (3.0, 10.0) for w in (0.5, 1.0) for s in (0.0, 0.5))
"""Penalty, width and weight of the ranks."""
_LEAVES = (8, 5)
"""Least prompts in a leaf of the trees: of labels, and of hints."""


def names(text: bool, deep: bool) -> tuple[str, ...]:
    """All members, in order."""
    dense = ("kernel", "neighbours", *(("deep kernel", "deep neighbours") if deep else ()))
    return (*(HASHED if text else ()), *dense, "trees")


def compared(name: str, seen: View) -> Floats:
    """The vector that a kernel or neighbours compare."""
    return seen.deep if name.startswith("deep") else seen.vector


Maker = Callable[[Sequence[View], Floats, float], Member]
"""From views, labels, and the share of the labels' noise that hints have left in them."""


def options(text: bool, tail: int) -> dict[str, dict[str, Maker]]:
    """By member, the settings that cross-validation chooses from."""

    def hashed(name: str, penalty: float) -> Maker:
        return lambda views, good, noise: Hashed.fit(
            [one.rows[name] for one in views], good, HASHED[name], penalty * noise
        )

    def kernel(name: str, penalty: float, width: float, weight: float) -> Maker:
        return lambda views, good, noise: Kernel.fit(
            np.stack([compared(name, one) for one in views]),
            _ranks(views),
            good,
            penalty * noise,
            width,
            weight,
            np.random.default_rng(len(views)),
        )

    def neighbours(name: str, k: int, weight: float) -> Maker:
        return lambda views, good, _: Neighbours.fit(
            np.stack([compared(name, one) for one in views]),
            _ranks(views),
            good,
            k,
            weight,
            np.random.default_rng(len(views)),
        )

    def trees(views: Sequence[View], good: Floats, noise: float) -> Member:
        leaf = _LEAVES[noise < 1]
        return Trees.fit(np.stack([one.form for one in views]), good, leaf, len(views), tail)

    found: dict[str, dict[str, Maker]] = {}
    if text:
        found = {n: {f"penalty {p:g}": hashed(n, p) for p in _PENALTIES} for n in HASHED}
    for seen in ("", "deep ") if tail else ("",):
        found[f"{seen}kernel"] = {
            f"penalty {p:g}, width {w:g}, ranks {s:g}": kernel(f"{seen}kernel", p, w, s)
            for p, w, s in _KERNELS
            if text or not s
        }
        found[f"{seen}neighbours"] = {
            f"k {k}, ranks {s:g}": neighbours(f"{seen}neighbours", k, s)
            for k, s in _NEIGHBOURS
            if text or not s
        }
    found["trees"] = {f"leaf {_LEAVES[0]}": trees}
    return found


def _ranks(views: Sequence[View]) -> Floats | None:
    found = [one.ranks for one in views if one.ranks is not None]
    return np.stack(found) if found else None


def one(member: Member, name: str, seen: View) -> Floats:
    """A member's output (tiers,) for one prompt."""
    if isinstance(member, Hashed):
        return member.one(seen.rows[name])
    if isinstance(member, Trees):
        return member.one(seen.form)
    return member.one(compared(name, seen), seen.ranks)


def many(member: Member, name: str, views: Sequence[View]) -> Floats:
    """A member's outputs (n, tiers) for many prompts."""
    if isinstance(member, Hashed):
        return member.many([one.rows[name] for one in views])
    if isinstance(member, Trees):
        return member.many(np.stack([one.form for one in views]))
    return member.many(np.stack([compared(name, one) for one in views]), _ranks(views))

"""Which texts say the same: near-duplicates within a set, and overlap with cases that judge.

    judged = Overlap(); judged.add("case text …")
    judged.share("a new prompt …")                 # 0 to 1: how much of it a case has already
    given_away(split)["validation"]                # train examples that nearly ask the same
    kept, dropped = screen(examples, [("of a suite", lambda e: judged.share(asked(e)) < 0.5)])

Two texts are compared by their runs of words, whatever their case and punctuation. The comparison
is exact: an inverted index finds the texts that share a run at all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from factory.training.dataset import Example, Split

RUN = 4
"""Words of a run. A text with fewer is one run."""

CONTAMINATED = 0.5
"""A text with so large a share of its runs in one judging case is not to be learned."""

DUPLICATE = 0.7
"""Two texts with so large a share of their runs in common are one."""

LOOKED_AT = 20_000
"""Train examples that `given_away` compares: it warns, and is not to hold up a run."""

_WORD = re.compile(r"[^\W_]+")

T = TypeVar("T")

Filter = tuple[str, Callable[[T], bool]]
"""What a rejected item is called, and whether an item passes."""


class Overlap:
    """Texts, found again by the runs of words they share with another one."""

    def __init__(self, run: int = RUN) -> None:
        self._run = run
        self._sizes: list[int] = []
        self._where: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, text: str) -> None:
        """Remember a text; one without a word is not remembered."""
        runs = self._runs(text)
        if not runs:
            return
        for one in runs:
            self._where[one].append(len(self._sizes))
        self._sizes.append(len(runs))

    def share(self, text: str) -> float:
        """The largest share of runs that a remembered text and this one hold in common.

        Relative to the smaller of the two, so that a text within another counts in full.
        """
        runs = self._runs(text)
        return max(
            (shared / min(len(runs), self._sizes[at]) for at, shared in self._common(runs)),
            default=0.0,
        )

    def likeness(self, text: str) -> float:
        """The largest Jaccard similarity of runs with a remembered text."""
        runs = self._runs(text)
        return max(
            (shared / (len(runs) + self._sizes[at] - shared) for at, shared in self._common(runs)),
            default=0.0,
        )

    def _common(self, runs: set[tuple[str, ...]]) -> list[tuple[int, int]]:
        counts: Counter[int] = Counter()
        for one in runs:
            counts.update(self._where.get(one, ()))
        return list(counts.items())

    def _runs(self, text: str) -> set[tuple[str, ...]]:
        words = _WORD.findall(text.casefold())
        if not words:
            return set()
        return {
            tuple(words[at : at + self._run]) for at in range(max(1, len(words) - self._run + 1))
        }


def asked(example: Example) -> str:
    """What the users of a conversation say: the part that makes it a case of its own."""
    return "\n".join(turn.content for turn in example.messages if turn.role == "user")


def given_away(split: Split, most: int = LOOKED_AT) -> dict[str, list[str]]:
    """Ids of train examples whose question nearly repeats one of a held-out split, by split.

    Scores on such a split flatter. Of a large train split the first `most` examples are compared.
    """
    questions = [(example.id, asked(example)) for example in split["train"][:most]]
    found = {}
    for part, examples in split.items():
        if part == "train":
            continue
        held_out = Overlap()
        for example in examples:
            held_out.add(asked(example))
        found[part] = [name for name, text in questions if held_out.likeness(text) >= DUPLICATE]
    return found


def screen(items: Sequence[T], filters: Sequence[Filter[T]]) -> tuple[list[T], dict[str, int]]:
    """Items that pass every filter, in order, and how many each filter was the first to reject.

    Filters are asked in order, item by item, so that one may remember what passed before.
    """
    kept: list[T] = []
    dropped = {name: 0 for name, _ in filters}
    for item in items:
        failed = next((name for name, passes in filters if not passes(item)), None)
        if failed is None:
            kept.append(item)
        else:
            dropped[failed] += 1
    return kept, dropped

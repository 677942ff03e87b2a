"""Near-duplicates in a data set, found by MinHash, and what of it a judging set knows already.

    clusters = near_duplicates(texts, threshold=0.8)     # [[0, 7], [3, 4, 9]]
    kept, report = clean(examples, against={"helpdesk": ["a case's question", ...]})

Texts are compared by their runs of words. MinHash with banding finds candidates in linear time;
each candidate pair is then compared exactly, so that a cluster holds no chance hits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasketch import MinHash, MinHashLSH

from factory.training.dataset import Example
from factory.training.formats import turns_of
from factory.training.screening import CONTAMINATED, Overlap, asked

NEAR = 0.8
"""Texts with at least this Jaccard similarity of word runs are near-duplicates."""

_PERMUTATIONS = 128
_RUN = 3
_RECALL = (0.1, 0.9)
"""Weights of false and missed candidates: a false one costs only an exact comparison."""

_SLACK = 0.15
"""How far below the threshold candidates are looked for, since MinHash only estimates."""

_WORD = re.compile(r"[^\W_]+")


def runs(text: str) -> frozenset[str]:
    """The runs of words of a text, whatever their case and punctuation."""
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - _RUN + 1)
    return (
        frozenset(" ".join(words[at : at + _RUN]) for at in range(count)) if words else frozenset()
    )


def near_duplicates(texts: Sequence[str], threshold: float = NEAR) -> list[list[int]]:
    """Clusters of at least two texts that are near-duplicates, each in order, of indices."""
    shingles = [runs(text) for text in texts]
    index = MinHashLSH(
        threshold=max(0.1, threshold - _SLACK), num_perm=_PERMUTATIONS, weights=_RECALL
    )
    parent = list(range(len(texts)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for at, mine in enumerate(shingles):
        if not mine:
            continue
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([run.encode() for run in sorted(mine)])
        for other in index.query(sketch):
            theirs = shingles[other]
            if len(mine & theirs) >= threshold * len(mine | theirs):
                parent[max(root(at), root(other))] = min(root(at), root(other))
        index.insert(at, sketch)
    clusters: dict[int, list[int]] = {}
    for at in range(len(texts)):
        clusters.setdefault(root(at), []).append(at)
    return [cluster for cluster in clusters.values() if len(cluster) > 1]


def clean(
    examples: Sequence[Example], against: Mapping[str, Sequence[str]], threshold: float = NEAR
) -> tuple[list[Example], dict[str, Any]]:
    """Examples that no judging case gives away, one of each cluster of near-duplicates.

    `against` are the questions of judging sets by name. Examples that share questions but not
    answers are kept, in one group, and told, since one of them may be wrong. The report names
    what was left out.
    """
    known = {name: _overlap(texts) for name, texts in against.items()}
    report: dict[str, Any] = {"contaminated": {}, "near_duplicates": [], "contradictions": []}
    clear = []
    for example in examples:
        question = asked(example)
        guilty = next(
            (name for name, cases in known.items() if cases.share(question) >= CONTAMINATED), None
        )
        if guilty is None:
            clear.append(example)
        else:
            report["contaminated"].setdefault(guilty, []).append(example.id)
    said = ["\n".join(turn.content for turn in turns_of(example)) for example in clear]
    dropped: set[int] = set()
    for cluster in near_duplicates(said, threshold):
        answers = {clear[at].messages[-1].content.strip() for at in cluster}
        names = [clear[at].id for at in cluster]
        if len(answers) > 1:
            report["contradictions"].append(names)
            group = clear[cluster[0]].group
            for at in cluster:
                clear[at] = clear[at].model_copy(update={"group": group})
            continue
        report["near_duplicates"].append(names)
        dropped.update(cluster[1:])
    return [item for at, item in enumerate(clear) if at not in dropped], report


def _overlap(texts: Sequence[str]) -> Overlap:
    found = Overlap()
    for text in texts:
        found.add(text)
    return found

"""Hashed n-grams of words and characters, fast enough for the hot path and stable for ever.

    ids, counts = words("Why is the sky blue?")      # word and word-pair buckets
    ids, counts = characters("Why is the sky blue?") # 3 to 5 letters, computed as rolling hashes

Feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML
2009): no vocabulary to store, unseen words cost nothing, and the same text falls into the same
buckets on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WORD_BUCKETS = 1 << 16
CHARACTER_BUCKETS = 1 << 17

MAX_CHARACTERS = 6000
"""Of a longer text only the beginning and the end count, half of this each."""

_WORD = re.compile(r"\w\w+")
_SPACE = re.compile(r"\s+")
_MULTIPLIER = np.uint32(0x9E3779B1)
_SIZES = (3, 4, 5)

Ids = NDArray[np.int64]
Counts = NDArray[np.float32]


def clip(text: str) -> str:
    """A text no longer than `MAX_CHARACTERS`, so that a decision has an upper bound in time."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]} {text[-half:]}"


def words(text: str) -> tuple[Ids, Counts]:
    """Buckets of the words and neighbouring pairs of a lower-case text, with their counts."""
    found = _WORD.findall(text)
    pairs = [f"{a} {b}" for a, b in pairwise(found)]
    crc, mask = zlib.crc32, WORD_BUCKETS - 1
    counts = Counter(crc(gram.encode("utf-8", "surrogatepass")) & mask for gram in (*found, *pairs))
    return (
        np.fromiter(counts.keys(), np.int64, len(counts)),
        np.fromiter(counts.values(), np.float32, len(counts)),
    )


def characters(text: str) -> tuple[Ids, Counts]:
    """Buckets of the runs of 3 to 5 bytes of a lower-case text, with their counts."""
    raw = f" {_SPACE.sub(' ', text).strip()} ".encode("utf-8", "surrogatepass")
    letters = np.frombuffer(raw, np.uint8).astype(np.uint32) + np.uint32(1)
    shift = np.uint32(32 - (CHARACTER_BUCKETS - 1).bit_length())
    rolling = letters
    found = []
    for size in range(2, max(_SIZES) + 1):
        if len(rolling) < 2:
            break
        rolling = rolling[:-1] * _MULTIPLIER + letters[size - 1 :]
        if size in _SIZES:
            mixed = (rolling ^ (rolling >> np.uint32(15))) * _MULTIPLIER
            found.append(mixed >> shift)
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    ids, counts = np.unique(np.concatenate(found), return_counts=True)
    return ids.astype(np.int64), counts.astype(np.float32)

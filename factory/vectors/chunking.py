"""Cuts a text into overlapping chunks at the ends of paragraphs, sentences or words.

chunked("First sentence. Second one.", most=16, overlap=0)    # ["First sentence.", "Second one."]
"""

from __future__ import annotations

import re
from itertools import pairwise

_ENDS = re.compile(r"\n\s*\n|\n|(?<=[.!?;:])\s+")
_SPACE = re.compile(r"\s+")


def chunked(text: str, most: int, overlap: int) -> list[str]:
    """The chunks of `text`, stripped, none longer than `most` characters.

    Everything but white space is in at least one chunk. A chunk begins with whole sentences of the
    one before, as long as these fit into `overlap` characters.
    Raises `ValueError` unless 0 <= overlap < most.
    """
    return [text[start:end].strip() for start, end in spans(text, most, overlap)]


def spans(text: str, most: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of each chunk, white space included; see `chunked`."""
    if not 0 <= overlap < most:
        raise ValueError(f"overlap must be at least 0 and below {most}, not {overlap}")
    pieces = [
        part
        for start, end in _between(text)
        for part in _cut(text, start, end, most)
        if text[slice(*part)].strip()
    ]
    found: list[tuple[int, int]] = []
    first = 0
    for last, (_, end) in enumerate(pieces):
        following = pieces[last + 1][1] if last + 1 < len(pieces) else None
        if following is not None and following - pieces[first][0] <= most:
            continue
        found.append((pieces[first][0], end))
        if following is None:
            break
        first = last + 1
        while first > 0 and _repeats(pieces, first - 1, last, following, most, overlap):
            first -= 1
    return found


def _repeats(
    pieces: list[tuple[int, int]], first: int, last: int, following: int, most: int, overlap: int
) -> bool:
    """Whether the next chunk may begin with piece `first` of the one that ends with `last`."""
    start = pieces[first][0]
    return pieces[last][1] - start <= overlap and following - start <= most


def _between(text: str) -> list[tuple[int, int]]:
    """The text in sentences and lines."""
    return list(pairwise([0, *(end.end() for end in _ENDS.finditer(text)), len(text)]))


def _cut(text: str, start: int, end: int, most: int) -> list[tuple[int, int]]:
    """A piece that is too long in parts, between words where there are some."""
    parts = []
    while end - start > most:
        spaces = [one.end() for one in _SPACE.finditer(text, start, start + most)]
        cut = spaces[-1] if spaces and spaces[-1] > start else start + most
        parts.append((start, cut))
        start = cut
    return [*parts, (start, end)]

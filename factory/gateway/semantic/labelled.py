"""Labelled pairs from a CSV file: `a,b,same`, and `kind` if it is there.

pairs = read_pairs(Path("pairs.csv"))
pairs[0].a, pairs[0].b, pairs[0].same
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

_YES = frozenset({"1", "true", "yes", "y", "same", "t"})
_NO = frozenset({"0", "false", "no", "n", "different", "f"})
MAX_PAIRS = 1_000_000
"""More lines than that are refused."""


class PairsError(Exception):
    """A file of pairs cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two questions and whether one answer serves both."""

    a: str
    b: str
    same: bool
    kind: str = ""


def read_pairs(path: Path) -> list[LabelledPair]:
    """All pairs of the file. Raises `PairsError` for a missing column, label or text."""
    pairs: list[LabelledPair] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            missing = [name for name in ("a", "b", "same") if name not in columns]
            if missing:
                raise PairsError(
                    f"'{path}' has no column '{missing[0]}'; its first line must be a,b,same"
                )
            for row in reader:
                pairs.append(_pair(row, f"line {reader.line_num} of '{path}'"))
                if len(pairs) > MAX_PAIRS:
                    raise PairsError(f"'{path}' has over {MAX_PAIRS:,} pairs; take a sample")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairsError(f"'{path}' cannot be read as CSV in UTF-8: {error}") from error
    if not pairs:
        raise PairsError(f"'{path}' has no pairs")
    return pairs


def _pair(row: dict[str, str | None], where: str) -> LabelledPair:
    a, b = (row.get("a") or "").strip(), (row.get("b") or "").strip()
    label = (row.get("same") or "").strip().lower().removesuffix(".0")
    if not a or not b:
        raise PairsError(f"{where} lacks a question in column '{'b' if a else 'a'}'")
    if label not in _YES | _NO:
        raise PairsError(f"{where} says same='{label[:20]}'; write 1 (same meaning) or 0")
    return LabelledPair(a, b, label in _YES, (row.get("kind") or "").strip())

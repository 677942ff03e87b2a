"""Regular expressions that take linear time on any text, by Google's RE2.

    Patterns({"DIGITS": "[0-9]+"}).spans("a 12")     # ("DIGITS", 2, 4, no group)

Python's `re` backtracks: `(a+)+$` needs 2**n steps, and one request would hold up the gateway.
RE2 has no backtracking, no look-around and no backreferences. In it `\\w`, `\\d` and `\\b` know
only ASCII; `\\pL` and `\\pN` are the letters and numbers of all scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import re2


class Match(NamedTuple):
    """Where a pattern matched; the span is that of its group `value` if it has one."""

    name: str
    start: int
    end: int


class Patterns:
    """Named patterns as one automaton: the leftmost match wins, of those the first pattern's."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        parts = []
        for name, pattern in patterns.items():
            # One group a pattern, so that the group's number says which pattern it was.
            if "(?P<" not in pattern:
                pattern = f"(?P<value>{pattern})"
            parts.append(pattern.replace("(?P<value>", f"(?P<{name}>"))
        self._compiled = compiled("|".join(f"(?:{part})" for part in parts))
        self._names = {number: name for name, number in self._compiled.groupindex.items()}

    def spans(self, text: str) -> Iterator[Match]:
        """Matches from left to right, without overlaps."""
        for match in self._compiled.finditer(text):
            for number, name in self._names.items():
                start, end = match.span(number)
                if start >= 0:
                    yield Match(name, start, end)
                    break


class Together:
    """Patterns of which only the numbers of those that match are asked for.

    A few automata rather than one: the states of one multiply where many patterns are half
    matched, which a hostile text can arrange (100 kB took 0.4 s, and takes 0.13 s).
    RE2 releases the interpreter's lock meanwhile.
    """

    _SIZE = 9

    def __init__(self, patterns: Sequence[str]) -> None:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 32 << 20
        self._sets: list[tuple[int, Any]] = []
        for first in range(0, len(patterns), self._SIZE):
            one = re2.Set.SearchSet(options)
            for pattern in patterns[first : first + self._SIZE]:
                one.Add(pattern.encode())
            one.Compile()
            self._sets.append((first, one))

    def matching(self, text: str) -> list[int]:
        """The numbers of the patterns that occur in `text`."""
        raw = text.encode()
        return [first + number for first, one in self._sets for number in one.Match(raw) or ()]


def compiled(pattern: str) -> Any:
    """`pattern` compiled by RE2. Raises `ValueError`."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        problem = error.args[0].decode() if error.args else "unknown"
        raise ValueError(f"'{pattern}' is not a regular expression of RE2: {problem}") from error

"""The form of a question with answers to choose from, or of any list: how long, how alike, numbers.

    choices("Which is prime?\\nA. 4\\nB. 7").shape     # (23,)

Lines that begin with a letter or a number and a mark ("B.", "2)") are the choices, the rest is the
stem; a text without such lines has zeros for them. Models differ in which forms they can do: a
choice between bare numbers asks for work, one between long sentences for reading.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

_CHOICE = re.compile(r"^\(?(?:[A-Za-z]|\d{1,2})[.)]\s+(.*)$")
_NUMERIC = re.compile(r"[-$€£]?[\d.,/ %\u00d7x*^+-]+(?:\s*\w{1,4})?")
_NAME = re.compile(r"\b[A-Z][a-z]+")
_YEAR = re.compile(r"\b(?:1\d|20)\d\d\b")
_OTHERS = re.compile(r"\b(?:he|she|his|her)\b")
_SELF = re.compile(r"\b(?:you|your|i|my)\b")

SIZE = 23
"""Length of the vector."""


def choices(text: str) -> NDArray[np.float32]:
    """Float32 (SIZE,): counts on a logarithmic scale, and shares of the choices."""
    found, stems = [], []
    for line in text.split("\n"):
        match = _CHOICE.match(line)
        if match:
            found.append(match.group(1).strip())
        elif line.strip():
            stems.append(line)
    stem, small = " ".join(stems), text.lower()
    n = len(found) or 1
    lengths = [len(one) for one in found] or [0]
    words = [set(one.lower().split()) for one in found] or [set()]
    firsts = {next(iter(one.lower().split()), "") for one in found}
    asked = set(stem.lower().split())
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((one - mean) ** 2 for one in lengths) / len(lengths))
    shared = len(set.intersection(*words)) / (len(set.union(*words)) + 1)
    return np.array(
        [
            len(found),
            math.log1p(len(stem)),
            math.log1p(mean),
            math.log1p(spread),
            math.log1p(max(lengths)),
            math.log1p(min(lengths)),
            sum(_NUMERIC.fullmatch(one) is not None for one in found) / n,
            shared if len(found) > 1 else 0.0,
            len(firsts) / n,
            sum(len(one & asked) / (len(one) + 1) for one in words) / len(words),
            math.log1p(sum(map(len, words)) / len(words)),
            sum(one[:1].isupper() for one in found) / n,
            sum("," in one for one in found) / n,
            sum(one.endswith(".") for one in found) / n,
            math.log1p(stem.count(",")),
            math.log1p(stem.count(".")),
            math.log1p(stem.count('"') + stem.count("\u201c")),
            math.log1p(len(_NAME.findall(stem))),
            float("|" in stem),
            float(bool(stems) and stems[0].rstrip().endswith(":")),
            math.log1p(len(_YEAR.findall(text))),
            math.log1p(len(_OTHERS.findall(small))),
            math.log1p(len(_SELF.findall(small))),
        ],
        dtype=np.float32,
    )

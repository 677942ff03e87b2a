"""What can be seen of a prompt without understanding it: length, digits, symbols, form.

surface("What is 2 + 2?\\nA. 3\\nB. 4").shape      # (26,)

Counts are put on a logarithmic scale and shares are taken of the whole, so that no value grows
with a long prompt.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

_NEGATION = re.compile(
    r"\b(?:not|except|least|false|incorrect|never|cannot|no|none|neither|nor|without)\b"
)
_ASKS_FACT = re.compile(r"\b(?:which|what|who|whom|whose|when|where)\b")
_ASKS_REASON = re.compile(r"\b(?:why|how|explain|prove|derive|show that)\b")
_ASKS_WORK = re.compile(r"\b(?:write|calculate|compute|solve|implement|translate|summari[sz]e)\b")
_COMBINED = re.compile(r"\b(?:all|both|none|neither) of (?:the|these)\b")
_NUMBER = re.compile(r"\d+")
_GAP = re.compile(r"_{2,}|\.{3,}")
_CODE = re.compile(r"[{};]|\bdef\b|\breturn\b|=>|->|\(\)")
_WORD = re.compile(r"\w+")

_CLASSES = np.zeros((256, 6), dtype=np.float32)
for _column, _members in enumerate(
    (
        b"0123456789",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        b"+-*/=^<>()[]{}|\\~%$",
        b".,;:!?",
        b"\"'`",
        bytes(range(128, 256)),
    )
):
    _CLASSES[list(_members), _column] = 1

SIZE = 28
"""Length of the vector."""


def surface(text: str) -> NDArray[np.float32]:
    """Float32 (SIZE,): the surface features of a text of any length."""
    raw = text.encode("utf-8", "surrogatepass")
    small = text.lower()
    found = _WORD.findall(small)
    lines = [len(line) for line in text.split("\n") if line.strip()] or [0]
    rest = lines[1:] or [0]
    mean = sum(rest) / len(rest)
    spread = math.sqrt(sum((one - mean) ** 2 for one in rest) / len(rest))
    shares = np.bincount(np.frombuffer(raw, np.uint8), minlength=256) @ _CLASSES / (len(raw) + 1)
    count = len(found) + 1
    return np.array(
        [
            *shares,
            math.log1p(len(text)),
            math.log1p(len(found)),
            sum(map(len, found)) / count,
            len(set(found)) / count,
            max(map(len, found), default=0) ** 0.5,
            math.log1p(len(lines)),
            math.log1p(lines[0]),
            math.log1p(lines[-1]),
            math.log1p(mean),
            math.log1p(spread),
            math.log1p(len(_NEGATION.findall(small))),
            math.log1p(len(_NUMBER.findall(small))),
            math.log1p(len(_GAP.findall(small))),
            math.log1p(len(_CODE.findall(text))),
            math.log1p(small.count("?")),
            math.log1p(small.count("(")),
            float(_ASKS_FACT.search(small) is not None),
            float(_ASKS_REASON.search(small) is not None),
            float(_ASKS_WORK.search(small) is not None),
            float(_COMBINED.search(small) is not None),
            float(small.rstrip().endswith("?")),
            float(bool(found) and found[0] in {"which", "what", "who", "when", "where"}),
        ],
        dtype=np.float32,
    )

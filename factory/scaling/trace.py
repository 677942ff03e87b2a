"""A recorded hour (or week) of requests: when each came, how long its prompt and its answer were.

    trace = Trace.read(Path("azure_llm_2023_conv.csv"))   # TIMESTAMP,ContextTokens,GeneratedTokens
    ten_times = trace.scaled(10, seed=1)

TIMESTAMP is ISO 8601 or seconds. Rows may stand in any order; other columns are ignored.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.scaling.errors import ScalingError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
JITTER_S = 30.0
"""Copies of an arrival are spread evenly over this many seconds around it."""
MOST_TOKENS = 10_000_000
MOST_REQUESTS = 50_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests by time of arrival."""

    arrivals: NDArray[np.float64]
    """Seconds since the first arrival, ascending."""
    prompt: NDArray[np.int64]
    """Tokens of each prompt, at least 1."""
    generated: NDArray[np.int64]
    """Tokens of each answer, at least 1."""

    def __len__(self) -> int:
        return int(self.arrivals.size)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrivals[-1]) if len(self) else 0.0

    @classmethod
    def of(
        cls,
        arrivals: NDArray[np.float64],
        prompt: NDArray[np.int64],
        generated: NDArray[np.int64],
    ) -> Trace:
        """A trace from unordered arrays of one length."""
        order = np.argsort(arrivals, kind="stable")
        first = float(arrivals[order[0]]) if arrivals.size else 0.0
        return cls(
            arrivals=arrivals[order] - first,
            prompt=np.maximum(prompt[order], 1),
            generated=np.maximum(generated[order], 1),
        )

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a CSV file. Raises `ScalingError` that names the line at fault."""
        times: list[float] = []
        prompts: list[int] = []
        answers: list[int] = []
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
                if missing:
                    raise ScalingError(
                        f"{path} has no column {missing[0]}; a trace has {', '.join(COLUMNS)}"
                    )
                for row in rows:
                    try:
                        times.append(_seconds(row["TIMESTAMP"]))
                        prompts.append(_tokens(row["ContextTokens"]))
                        answers.append(_tokens(row["GeneratedTokens"]))
                    except (TypeError, ValueError) as error:
                        raise ScalingError(f"{path}, line {rows.line_num}: {error}") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ScalingError(f"cannot read the trace {path}: {error}") from error
        if len(times) < 2:
            raise ScalingError(f"{path} has {len(times)} requests; a trace needs at least 2")
        return cls.of(np.array(times), np.array(prompts), np.array(answers))

    def scaled(self, factor: float, *, seed: int) -> Trace:
        """The same traffic from `factor` times as many users.

        A whole copy repeats every arrival, moved by up to half of `JITTER_S`, so that bursts of
        minutes stay and those of seconds average out, as they do when independent users add up. The
        rest of the factor is a random choice of requests. Raises `ScalingError`.
        """
        if not isfinite(factor) or factor <= 0:
            raise ScalingError(f"a trace can be scaled by a number above 0, not by {factor}")
        if factor * len(self) > MOST_REQUESTS:
            raise ScalingError(f"more than {MOST_REQUESTS:,} requests; choose a smaller scale")
        if factor == 1:
            return self
        random = np.random.default_rng(seed)
        whole = int(factor)
        chosen = random.random(len(self)) < factor - whole
        index = np.concatenate([np.repeat(np.arange(len(self)), whole), np.flatnonzero(chosen)])
        if index.size < 2:
            raise ScalingError(f"scaled by {factor}, the trace has fewer than 2 requests")
        times = self.arrivals[index]
        if whole:
            most = min(JITTER_S, self.seconds) / 2
            moved = times + random.uniform(-most, most, index.size)
            # Reflect at both ends, so that the traffic neither starts earlier nor thins out there.
            moved = np.abs(moved)
            times = self.seconds - np.abs(self.seconds - moved)
        return Trace.of(times, self.prompt[index], self.generated[index])


def _seconds(text: str) -> float:
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"TIMESTAMP '{text}' is neither ISO 8601 nor seconds") from None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return when.timestamp()
    if not isfinite(value):
        raise ValueError(f"TIMESTAMP '{text}' is not finite")
    return value


def _tokens(text: str) -> int:
    value = float(text)
    if not 0 <= value <= MOST_TOKENS or value != int(value):
        raise ValueError(f"'{text}' is not a number of tokens (0 to {MOST_TOKENS:,})")
    return int(value)

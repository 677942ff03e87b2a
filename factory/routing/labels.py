"""Labelled prompts: which tier's answer was good enough.

    table = read(Path("labels.parquet"))          # prompt, weak_correct, strong_correct
    table = read(Path("labels.csv"))              # prompt, tier1_good, tier2_good, tier3_good
    table = from_samples(samples, tiers=(1, 2))   # the ledger's own outcomes, without the prompts

Every other column of a file is disregarded, since it is not known when a request arrives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.routing.errors import RoutingError

Floats = NDArray[np.float64]

_TWO = {"weak_correct": 1, "strong_correct": 2}
_GOOD = {f"tier{tier}_good": tier for tier in (1, 2, 3)}

WEAK_STRONG = tuple(_TWO)
"""Label columns that name no tiers: the lowest and the highest of whoever uses them."""


class Sample(Protocol):
    """A request with its outcome, as `factory.ledger.samples.LabelledSample` has it."""

    @property
    def embedding(self) -> bytes: ...
    @property
    def attempts(self) -> Sequence[Any]: ...
    @property
    def success(self) -> bool | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Prompts with the quality of each tier's answer."""

    tiers: tuple[int, ...]
    """Ascending; a column of `good` for each."""
    good: NDArray[np.float32]
    """(n, tiers) in [0, 1]; NaN where it is not known."""
    prompts: tuple[str, ...] | None = None
    """The texts; None when only embeddings were kept."""
    embeddings: NDArray[np.float32] | None = None
    """(n, dimensions); None until an embedder has made them."""
    names: tuple[str, ...] = ()
    """The label columns of the file it was read from."""

    def __len__(self) -> int:
        return len(self.good)

    def rows(self, index: NDArray[Any]) -> Table:
        """The rows at `index`, in that order."""
        return replace(
            self,
            good=self.good[index],
            prompts=None if self.prompts is None else tuple(self.prompts[i] for i in index),
            embeddings=None if self.embeddings is None else self.embeddings[index],
        )

    def complete(self) -> NDArray[np.intp]:
        """Indices of the rows whose every tier is labelled: those that can be calibrated on."""
        return np.flatnonzero(~np.isnan(self.good).any(axis=1))

    def split(self, fraction: float, seed: int) -> tuple[Table, Table]:
        """Two parts at random, the first with that fraction of the rows.

        Rows with the same prompt stay together, so that the second part is really unseen.
        """
        if not 0 < fraction < 1:
            raise RoutingError(
                f"a fraction of {fraction} leaves a part empty; give one inside 0..1"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(fraction * len(self))
        first, second = order[:cut], order[cut:]
        if self.prompts is not None:
            seen = {self.prompts[i] for i in first}
            twice = np.array([self.prompts[i] in seen for i in second], dtype=bool)
            first, second = np.concatenate([first, second[twice]]), second[~twice]
        return self.rows(first), self.rows(second)


def read(path: Path) -> Table:
    """A labelled table from a parquet, CSV or JSON-lines file.

    Raises `RoutingError` for a file that cannot be read, a missing column, or a label that is
    not between 0 and 1 (or true and false); the message names the row.
    """
    return _table(_columns(Path(path)), str(path))


def read_confidences(path: Path) -> tuple[Floats, Floats]:
    """Pairs from a file with the columns `confidence` and `good`: float64 (n) each.

    Raises `RoutingError` as `read` does; rows with a value missing are left out.
    """
    columns, name = _columns(Path(path)), str(path)
    if not {"confidence", "good"} <= columns.keys():
        raise RoutingError(f"'{name}' needs the columns confidence and good")
    pairs = [
        (_number(sure, name, "confidence", row), _number(good, name, "good", row))
        for row, (sure, good) in enumerate(zip(columns["confidence"], columns["good"], strict=True))
    ]
    return _pairs(pairs)


def confidences_from_samples(samples: Iterable[Sample], tier: int) -> tuple[Floats, Floats]:
    """Pairs from the ledger: a tier's own confidence, and whether its answer was good.

    Only answers that were sent have an outcome, so nothing is known below the threshold that was
    in force. An answer that was climbed over has none and is left out.
    """
    return _pairs(
        [
            (attempt.confidence, float(sample.success))
            for sample in samples
            if sample.success is not None
            for attempt in sample.attempts
            if attempt.tier == tier and attempt.accepted and attempt.confidence is not None
        ]
    )


def _pairs(pairs: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    array = array[~np.isnan(array).any(axis=1)]
    return array[:, 0], array[:, 1]


def _columns(path: Path) -> dict[str, list[Any]]:
    import pandas as pd  # type: ignore[import-untyped]

    readers = {
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".jsonl": lambda file: pd.DataFrame(_lines(file)),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RoutingError(f"'{path}' is neither .parquet, .csv nor .jsonl")
    if not path.is_file():
        raise RoutingError(f"there is no file '{path}'")
    try:
        frame = reader(path)
    except RoutingError:
        raise
    except Exception as error:  # pandas and pyarrow each raise their own
        raise RoutingError(f"'{path}' cannot be read: {error}") from error
    return {str(name): frame[name].tolist() for name in frame.columns}


def from_samples(samples: Iterable[Sample], tiers: Sequence[int], dimensions: int) -> Table:
    """Labels from the ledger's own outcomes; samples without outcome or embedding are left out.

    The answer that was given has the reported outcome. A lower tier that was asked and climbed
    over was not good enough. The rest follows from the ladder: above a good answer all are taken
    as good, below a bad one all as bad. What is still open is NaN. The labels are those of the
    traffic as it was routed, so a tier that was never tried cannot be learned.
    """
    wanted = tuple(sorted(tiers))
    vectors, rows = [], []
    for sample in samples:
        given = [attempt.tier for attempt in sample.attempts if attempt.accepted]
        vector = np.frombuffer(sample.embedding, dtype="<f2").astype(np.float32)
        if sample.success is None or not given or len(vector) != dimensions:
            continue
        answered = given[-1]
        over = {attempt.tier for attempt in sample.attempts if attempt.tier < answered}
        rows.append([_label(tier, answered, sample.success, over) for tier in wanted])
        vectors.append(vector)
    return Table(
        tiers=wanted,
        good=np.array(rows, dtype=np.float32).reshape(len(rows), len(wanted)),
        embeddings=np.array(vectors, dtype=np.float32).reshape(len(rows), dimensions),
    )


def _label(tier: int, answered: int, success: bool, climbed_over: set[int]) -> float:
    if tier == answered:
        return float(success)
    if tier > answered:
        return 1.0 if success else np.nan
    return 0.0 if tier in climbed_over or not success else np.nan


def _lines(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RoutingError(f"'{path}' line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise RoutingError(f"'{path}' line {number} is not a JSON object")
        rows.append(row)
    return rows


def _table(columns: Mapping[str, list[Any]], name: str) -> Table:
    labels = next((kind for kind in (_GOOD, _TWO) if len(kind.keys() & columns.keys()) > 1), None)
    if labels is None or "prompt" not in columns:
        raise RoutingError(
            f"'{name}' needs the columns prompt, and tier1_good with tier2_good (or tier3_good), "
            "or weak_correct with strong_correct"
        )
    found = {column: tier for column, tier in labels.items() if column in columns}
    prompts = columns["prompt"]
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise RoutingError(f"'{name}' row {row + 1}: prompt is not a text")
    good = [
        [_number(value, name, column, row) for row, value in enumerate(columns[column])]
        for column in found
    ]
    return Table(
        tiers=tuple(found.values()),
        good=np.array(good, dtype=np.float32).T.reshape(len(prompts), len(found)),
        prompts=tuple(prompts),
        names=tuple(found),
    )


def _number(value: Any, name: str, column: str, row: int) -> float:
    if value is None:
        return np.nan
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0, "": np.nan}.get(value.strip().lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number < 0 or number > 1:
        raise RoutingError(
            f"'{name}' row {row + 1}: {column} is {value!r}; give true, false, or a share 0 to 1"
        )
    return number

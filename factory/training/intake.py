"""Reading files of any size with Ray Data: JSON Lines, JSON and Parquet, row by row.

    found = read_files([Path("chats.jsonl"), Path("more.parquet")])
    found.examples, found.rejected          # every row is in one of the two

Files are cut into pieces that workers parse at the same time; every row keeps its file and line
(or row number), and a row that does not fit is reported with both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.training.dataset import DatasetError, Example
from factory.training.formats import to_example

PIECE_BYTES = 8 << 20
"""About how much of a JSON Lines file one task parses."""


@dataclass(frozen=True, slots=True)
class Found:
    """Every row of the files, in order, as an example or as a reason why not."""

    examples: tuple[Example, ...]
    rejected: tuple[str, ...]
    """`FILE, line N: what is wrong`."""


def read_files(paths: Sequence[Path], piece_bytes: int = PIECE_BYTES) -> Found:
    """Read all files; Ray must be initialised. Raises `DatasetError` for a file that cannot be."""
    import ray.data

    pieces = [piece for path in paths for piece in _pieces(path, piece_bytes)]
    if not pieces:
        raise DatasetError("there is not a single row in the files given")
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = ray.data.from_items(
        [{"number": number, **piece} for number, piece in enumerate(pieces)],
        override_num_blocks=len(pieces),
    ).flat_map(_parse)
    rows = sorted(table.take_all(), key=lambda row: (row["number"], row["line"]))
    examples = [Example.model_validate_json(row["example"]) for row in rows if row["example"]]
    return Found(tuple(examples), tuple(row["error"] for row in rows if row["error"]))


def _pieces(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """Parts of a file that can be parsed alone: where each begins and the number of its row."""
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _row_groups(path)
            case ".jsonl" | ".ndjson":
                yield from _line_groups(path, size)
            case ".json":
                yield {"path": str(path), "kind": "json", "start": 0, "end": 0, "first": 1}
            case other:
                raise DatasetError(
                    f"'{path}' ends in '{other}'; give .jsonl, .json or .parquet files"
                )
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the data file '{path}': {error}") from error


def _row_groups(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    first = 1
    for group in range(file.num_row_groups):
        yield {"path": str(path), "kind": "parquet", "start": group, "end": 0, "first": first}
        first += file.metadata.row_group(group).num_rows


def _line_groups(path: Path, size: int) -> Iterator[dict[str, Any]]:
    start = end = 0
    first = number = 1
    with path.open("rb") as stream:
        for line in stream:
            end += len(line)
            number += 1
            if end - start >= size:
                yield _lines(path, start, end, first)
                start, first = end, number
    if end > start:
        yield _lines(path, start, end, first)


def _lines(path: Path, start: int, end: int, first: int) -> dict[str, Any]:
    return {"path": str(path), "kind": "lines", "start": start, "end": end, "first": first}


def _parse(piece: dict[str, Any]) -> list[dict[str, Any]]:
    """What a worker does with one piece: a dictionary for every row that is not blank."""
    name, what = Path(piece["path"]).name, "line" if piece["kind"] == "lines" else "row"
    found = []
    for line, row in _rows(piece):
        place = f"{name}, {what} {line}"
        example, error = "", ""
        try:
            if isinstance(row, Exception):
                raise DatasetError(f"{place}: {row}")
            example = to_example(row, place).model_dump_json()
        except DatasetError as wrong:
            error = str(wrong)
        found.append({"number": piece["number"], "line": line, "example": example, "error": error})
    return found


def _rows(piece: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    path, first = Path(piece["path"]), piece["first"]
    if piece["kind"] == "parquet":
        from pyarrow import parquet

        rows = parquet.ParquetFile(path).read_row_group(piece["start"]).to_pylist()
        yield from enumerate(rows, start=first)
    elif piece["kind"] == "json":
        try:
            rows = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            yield 1, ValueError(f"not valid JSON: {error}")
            return
        yield from enumerate(rows if isinstance(rows, list) else [rows], start=1)
    else:
        with path.open("rb") as stream:
            stream.seek(piece["start"])
            raw = stream.read(piece["end"] - piece["start"])
        lines = raw.split(b"\n")
        for number, line in enumerate(lines, start=first):
            if line.strip():
                yield number, _json(line)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except ValueError as error:
        return ValueError(f"not valid JSON: {error}")

"""FOCUS rows into a file: CSV or Parquet by its name, whole or not at all.

    written = export(ledger, settings, Path("costs.parquet"), since, until)
    written.rows, written.billed_nusd, written.effective_nusd

What was written is added up and compared with the ledger's own sums before the file is there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from factory.config import Settings
from factory.ledger import focus
from factory.ledger.errors import LedgerError
from factory.ledger.focus import COLUMNS, Period, Row, Totals, rows, totals
from factory.ledger.store import Ledger

SUFFIXES = (".csv", ".parquet")
_BATCH = 10_000
_DIGITS = 12
"""Decimals of quantities in Parquet; costs have nine, nano-dollars."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a file holds."""

    path: Path
    rows: int
    billed_nusd: int
    effective_nusd: int


def export(
    ledger: Ledger,
    settings: Settings,
    path: Path,
    since: datetime | None = None,
    until: datetime | None = None,
    period: Period = "hour",
) -> Written:
    """Write the costs from `since` up to `until`.

    Raises `LedgerError` for a name that is neither CSV nor Parquet, a folder that cannot be
    written, or sums that differ from the ledger's.
    """
    if path.suffix not in SUFFIXES:
        raise LedgerError(f"'{path}' must end in .csv or .parquet; that says what is written")
    draft = path.with_name(f".{path.name}.draft")
    write: Callable[[Path, Iterator[Row]], None] = _csv if path.suffix == ".csv" else _parquet
    count, added = 0, Totals(0, 0)

    def counted(found: Iterator[Row]) -> Iterator[Row]:
        nonlocal count, added
        for batch in _batches(found):
            count += len(batch)
            part = focus.sums(batch)
            added = Totals(
                added.billed_nusd + part.billed_nusd, added.effective_nusd + part.effective_nusd
            )
            yield from batch

    try:
        with ledger.read() as connection:
            expected = totals(connection, settings, since, until)
            write(draft, counted(rows(connection, settings, since, until, period)))
        if added != expected:
            raise LedgerError(
                f"the rows add up to {added}, the ledger to {expected}; nothing was written"
            )
        draft.replace(path)
    except OSError as error:
        raise LedgerError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return Written(path, count, added.billed_nusd, added.effective_nusd)


def _batches(found: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in found:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _csv(path: Path, found: Iterator[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(focus.texts(row) for row in found)


def _parquet(path: Path, found: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[str, Any] = {
        "text": pa.string(),
        "cost": pa.decimal128(38, 9),
        "number": pa.decimal128(38, _DIGITS),
        "time": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    numbers = [name for name, kind in COLUMNS.items() if kind == "number"]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(found):
            for row in batch:
                for name in numbers:
                    if row[name] is not None:
                        row[name] = round(row[name], _DIGITS)
            writer.write_table(pa.Table.from_pylist(batch, schema))

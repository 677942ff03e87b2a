"""A gateway's journal: settled requests, on disk before their answers are sent.

    journal = Journal(settings.home / "run" / "journals", holder)
    journal.append(request, charges)     # when it returns, it outlives this process
    segment = journal.seal()             # what was appended so far; new ones go elsewhere
    journal.drop(segment)                # it is in the database
    for segment, entries in left_behind(folder): ...    # of gateways that died

One JSON line an entry. A line is written by one system call into the kernel's cache, so it
survives whatever happens to the process; as with SQLite in its `NORMAL` mode, a machine that loses
power may lose the last moments. Only whole lines count: an answer is sent after its line is.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.records import ChargeRecord, RequestRecord

_log = logging.getLogger(__name__)

Entry = tuple[RequestRecord, tuple[ChargeRecord, ...]]
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
_LOCK = ".lock"
_SEGMENT = ".jsonl"
_DAMAGED = ".damaged"


class Journal:
    """The journal of one process; others see by its lock that it is alive."""

    def __init__(self, folder: Path, holder: str) -> None:
        """Raises `LedgerError` when `folder` cannot be written."""
        self.folder = folder
        self._holder = holder
        self._number = 0
        self._file: int | None = None
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / f"{holder}{_LOCK}")
        except OSError as error:
            raise LedgerError(
                f"cannot keep the gateway's journal in {folder}: {error.strerror}; make the folder "
                "writable, or set `gateway.journal: false` in factory.yaml"
            ) from error

    def append(self, request: RequestRecord, charges: Sequence[ChargeRecord]) -> None:
        """Keep an entry; it outlives this process when this returns.

        Raises `LedgerUnavailable`, with nothing kept, when the disk does not take it.
        """
        line = to_json((request, tuple(charges))) + b"\n"
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
                self._size = 0
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, self._size)
                raise OSError(28, "no space is left")
        except OSError as error:
            raise LedgerUnavailable(
                f"the gateway's journal in {self.folder} cannot be written: {error.strerror}; "
                "make room on the disk"
            ) from error
        self._size += written

    def seal(self) -> Path | None:
        """The segment of what was appended since the last call; None when that is nothing."""
        if self._file is None:
            return None
        os.close(self._file)
        sealed, self._file = self._path, None
        self._number += 1
        return sealed

    def drop(self, segment: Path) -> None:
        """Forget a segment."""
        segment.unlink(missing_ok=True)

    def close(self) -> None:
        """End. What was not dropped is left to whoever finds it."""
        self.seal()
        if not list(self.folder.glob(f"{self._holder}.*{_SEGMENT}")):
            (self.folder / f"{self._holder}{_LOCK}").unlink(missing_ok=True)
        os.close(self._lock)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self._holder}.{self._number:09d}{_SEGMENT}"


def left_behind(folder: Path) -> Iterator[tuple[Path, list[Entry]]]:
    """Segments of processes that ended without dropping them, oldest first, with their entries.

    While an item is worked on nobody else gets it; one that still exists afterwards comes again.
    A segment that cannot be read is renamed to `*.damaged` and logged.
    """
    for lock in sorted(folder.glob(f"*{_LOCK}")):
        with _taken(lock) as alone:
            if not alone:
                continue
            segments = sorted(folder.glob(f"{lock.name.removesuffix(_LOCK)}.*{_SEGMENT}"))
            for segment in segments:
                try:
                    yield segment, read(segment)
                except LedgerError as error:
                    _log.error("%s", error)
                    segment.rename(segment.with_suffix(_DAMAGED))
            if not any(segment.exists() for segment in segments):
                lock.unlink(missing_ok=True)


def read(segment: Path) -> list[Entry]:
    """The entries of a segment. A last line without its end was never acknowledged and is left out.

    Raises `LedgerError` for anything else that is not an entry.
    """
    lines = segment.read_bytes().split(b"\n")
    try:
        return [_ENTRY.validate_json(line) for line in lines[:-1]]
    except (ValidationError, LedgerError) as error:
        raise LedgerError(
            f"the journal {segment} is damaged, so its requests are not in the ledger: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _locked(path: Path) -> int:
    """The lock file, held; made anew when somebody just tidied it away as one of the dead."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)


@contextmanager
def _taken(lock: Path) -> Iterator[bool]:
    """Whether the process of `lock` is gone; nobody else is told so until the end."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)

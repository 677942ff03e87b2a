"""The object store: immutable folders addressed by the hash of their content.

    store = ObjectStore(settings.objects)
    card = store.put("datasets", "helpdesk", fill=write_files, meta={"seed": 7})
    store.find("datasets", "helpdesk").path      # root/datasets/helpdesk/<hash[:16]>

A folder is filled under a temporary name and renamed when it is whole, so a reader never sees
half of one. The same bytes always have the same hash and are stored once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factory.catalog.errors import CatalogError

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Fill = Callable[[Path], Mapping[str, Any] | None]
"""Writes files into the folder it is given; what it returns is added to the manifest's meta."""


@dataclass(frozen=True, slots=True)
class Object:
    """One complete folder of the store."""

    kind: str
    name: str
    hash: str
    path: Path
    meta: Mapping[str, Any]
    created: datetime
    size_bytes: int = 0
    files: Mapping[str, str] = field(default_factory=dict, repr=False)


class ObjectStore:
    """Folders under `root/kind/name/hash[:16]`, each with a `manifest.json`."""

    def __init__(
        self, root: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.root = Path(root).absolute()
        self._clock = clock

    def put(
        self, kind: str, name: str, fill: Fill, meta: Mapping[str, Any] | None = None
    ) -> Object:
        """Store what `fill(folder)` writes, all of it or nothing.

        Content that is there already is not stored twice; it takes the new meta and date.
        Raises `CatalogError` for an unsafe name, an empty folder, a link, or a full disk.
        """
        parent = self._folder(kind, name)
        try:
            with self._workspace() as folder:
                added = fill(folder) or {}
                files = _digest(folder)
                manifest = {
                    "kind": kind,
                    "name": name,
                    "hash": content_hash(files),
                    "created": self._clock().isoformat(),
                    "files": files,
                    "meta": {**(meta or {}), **added},
                }
                _write_manifest(folder, manifest)
                return self._publish(folder, parent)
        except OSError as error:
            raise CatalogError(
                f"cannot store {kind}/{name} under '{self.root}': {error}. "
                "Free some space or check the folder's permissions, then run it again."
            ) from error

    def find(self, kind: str, name: str) -> Object | None:
        """The newest complete object of that name, or None."""
        found = self._complete(self._folder(kind, name))
        return max(found, key=lambda item: (item.created, item.hash), default=None)

    def get(self, kind: str, name: str, hash: str) -> Object:
        """The object with that hash (all of it, or at least its first 16 digits).

        Raises `CatalogError` when there is none.
        """
        if re.fullmatch(r"[0-9a-f]{16,64}", hash):
            found = _read(self._folder(kind, name) / hash[:16])
            if found is not None and found.hash.startswith(hash):
                return found
        raise CatalogError(f"the object store has no {kind}/{name} with hash '{hash}'")

    def list(self, kind: str) -> list[Object]:
        """Every complete object of a kind, by name, oldest first."""
        names = sorted(self._folder(kind).iterdir()) if self._folder(kind).is_dir() else []
        found = [item for folder in names for item in self._complete(folder)]
        return sorted(found, key=lambda item: (item.name, item.created, item.hash))

    def verify(self, item: Object) -> None:
        """Hash every file again. Raises `CatalogError` naming the first that changed."""
        actual = {path: entry["sha256"] for path, entry in _digest(item.path).items()}
        for path in sorted(actual.keys() | item.files.keys()):
            if actual.get(path) != item.files.get(path):
                raise CatalogError(
                    f"'{item.path / path}' is not what was stored; remove the folder "
                    f"'{item.path}' and make {item.kind}/{item.name} again"
                )

    def _folder(self, *parts: str) -> Path:
        for part in parts:
            if not _SAFE.fullmatch(part):
                raise CatalogError(
                    f"'{part}' cannot name an object: use letters, digits, '.', '_' and '-', "
                    "starting with a letter or digit"
                )
        return self.root.joinpath(*parts)

    def _complete(self, parent: Path) -> Iterator[Object]:
        if parent.is_dir():
            for folder in parent.iterdir():
                if (found := _read(folder)) is not None:
                    yield found

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A fresh folder on the store's disk, removed at the end; a lock says its owner lives."""
        partial = self.root / _PARTIAL
        partial.mkdir(parents=True, exist_ok=True)
        folder = partial / uuid.uuid4().hex
        alive = FileLock(f"{folder}.lock")
        with FileLock(partial / "sweep.lock"):
            _sweep(partial)
            alive.acquire()
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            alive.release()
            Path(alive.lock_file).unlink(missing_ok=True)

    def _publish(self, folder: Path, parent: Path) -> Object:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        target = parent / manifest["hash"][:16]
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / _PARTIAL / "publish.lock"):
            if _read(target) is not None:
                _write_manifest(target, manifest)
            else:
                if target.exists():
                    shutil.rmtree(target)
                folder.rename(target)
                _sync(parent)
        stored = _read(target)
        assert stored is not None, "a folder just published is complete"
        return stored


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over the sorted paths and digests of a folder: the same bytes, the same hash."""
    lines = (f"{path}\0{files[path]['sha256']}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise CatalogError(f"'{relative}' is a link; an object may hold only real files")
        if path.is_dir() or relative == MANIFEST:
            continue
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        files[relative] = {"sha256": digest, "bytes": path.stat().st_size}
    if not files:
        raise CatalogError("an object without any file cannot be stored")
    return files


def _read(folder: Path) -> Object | None:
    """The object in a folder; None when its manifest or a file of it is missing or cut short."""
    try:
        raw = json.loads((folder / MANIFEST).read_text("utf-8"))
        for path, entry in raw["files"].items():
            if (folder / path).stat().st_size != entry["bytes"]:
                return None
        return Object(
            kind=raw["kind"],
            name=raw["name"],
            hash=raw["hash"],
            path=folder,
            meta=raw["meta"],
            created=datetime.fromisoformat(raw["created"]),
            size_bytes=sum(entry["bytes"] for entry in raw["files"].values()),
            files={path: entry["sha256"] for path, entry in raw["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    draft = folder / f".{MANIFEST}.{uuid.uuid4().hex}"
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=2, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(folder / MANIFEST)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(partial: Path) -> None:
    """Remove the working folders whose owners are dead: their locks can be taken."""
    for folder in [path for path in partial.iterdir() if path.is_dir()]:
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)

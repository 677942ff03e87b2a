"""The working folder of a job, kept as it was when the job was submitted.

    code = take(settings.home, Path())       # its content hash; taking it again costs nothing more
    folder(settings.home, code)              # what every attempt uploads

Ignore files are honoured as by `ray job submit`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from factory.cluster.errors import ClusterError

MAX_BYTES = 512 * 2**20
"""What Ray uploads at most."""


def take(home: Path, working_dir: Path) -> str:
    """Copy `working_dir` under `home`; returns the hash of its content. Raises `ClusterError`."""
    source = working_dir.resolve()
    if not source.is_dir():
        raise ClusterError(f"the working folder '{source}' does not exist")
    root = home / "queue" / "code"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".draft-") as draft:
        package = Path(draft) / "code.zip"
        _pack(source, package)
        content = hashlib.sha256()
        size = 0
        with zipfile.ZipFile(package) as archive:
            for item in sorted(archive.infolist(), key=lambda each: each.filename):
                content.update(f"{item.filename}\0{item.CRC}\0{item.file_size}\0".encode())
                size += item.file_size
            if size > MAX_BYTES:
                raise ClusterError(
                    f"the working folder '{source}' has {size / 2**20:.0f} MiB; a job takes "
                    f"{MAX_BYTES // 2**20} MiB, so name what it does not need in .rayignore"
                )
            code = content.hexdigest()[:16]
            if (root / code).is_dir():
                os.utime(root / code)
            else:
                archive.extractall(Path(draft) / "tree")
                (Path(draft) / "tree").mkdir(exist_ok=True)
                try:
                    (Path(draft) / "tree").rename(root / code)
                except OSError:  # somebody else was faster with the same content
                    if not (root / code).is_dir():
                        raise
    return code


def folder(home: Path, code: str) -> Path:
    """Where it lies. Raises `ClusterError` when it is gone."""
    path = home / "queue" / "code" / code
    if not path.is_dir():
        raise ClusterError(f"the code of the job, '{path}', is gone; submit the job again")
    return path


def _pack(source: Path, package: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    try:
        create_package(
            str(source),
            package,
            include_gitignore=True,
            excludes=[".factory", ".git"],
            logger=logging.getLogger(__name__),  # Ray's own tells of every file left out
        )
    except OSError as error:
        raise ClusterError(f"cannot read the working folder '{source}': {error}") from error


def prune(home: Path, needed: set[str], before: float) -> list[str]:
    """Remove what no job needs and nobody took since `before`; returns what was removed.

    `before` (seconds since the epoch) spares what is being submitted right now.
    """
    root = home / "queue" / "code"
    if not root.is_dir():
        return []
    gone = [
        entry
        for entry in root.iterdir()
        if entry.name not in needed
        and not entry.name.startswith(".")
        and entry.stat().st_mtime < before
    ]
    for entry in gone:
        shutil.rmtree(entry, ignore_errors=True)
    return [entry.name for entry in gone]

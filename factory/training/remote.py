"""Copies of checkpoints in an object store or another folder, addressed by URL.

    upload(folder / "step-00000050", "s3://bucket/run-1", keep=2)
    steps("s3://bucket/run-1")                    # newest first
    download("s3://bucket/run-1", "step-00000050", draft)

The manifest goes up last and comes off first, so that a checkpoint whose copy was cut short is
not seen. PyArrow opens `file:///folder`, `s3://` and `gs://` with the environment's credentials.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory.training.errors import TrainingError

MANIFEST = "manifest.json"


def upload(path: Path, url: str, keep: int) -> None:
    """Copy one checkpoint, then remove all but the newest `keep`. Raises `TrainingError`."""
    from pyarrow import fs

    store, root = _open(url)
    target = f"{root}/{path.name}"
    try:
        store.create_dir(target, recursive=True)
        files = sorted(path.iterdir(), key=lambda file: (file.name == MANIFEST, file.name))
        for file in files:
            fs.copy_files(str(file), f"{target}/{file.name}", fs.LocalFileSystem(), store)
        for old in steps(url)[keep:]:
            store.delete_file(f"{root}/{old}/{MANIFEST}")
            store.delete_dir(f"{root}/{old}")
    except OSError as error:
        raise TrainingError(
            f"cannot copy the checkpoint '{path.name}' to {url}: {error}; see that the store is "
            "there and may be written, or leave checkpoint_url out"
        ) from error


def steps(url: str) -> list[str]:
    """Names of whole checkpoints, newest first. Raises `TrainingError`."""
    from pyarrow import fs

    store, root = _open(url)
    try:
        found = store.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise TrainingError(f"cannot look for checkpoints at {url}: {error}") from error
    whole = [Path(item.path).parent.name for item in found if item.base_name == MANIFEST]
    return sorted((name for name in whole if name.startswith("step-")), reverse=True)


def download(url: str, name: str, folder: Path) -> None:
    """Copy one checkpoint into `folder`. Raises `OSError`."""
    from pyarrow import fs

    store, root = _open(url)
    folder.mkdir(parents=True)
    fs.copy_files(f"{root}/{name}", str(folder), store, fs.LocalFileSystem())


def _open(url: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        store, root = fs.FileSystem.from_uri(url)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"checkpoint_url '{url}' cannot be opened: {error}; "
            "give one such as s3://bucket/folder or file:///folder"
        ) from error
    return store, root.rstrip("/")

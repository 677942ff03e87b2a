"""A model of the Hugging Face hub: which commit, which files, and their download.

Files are fetched into a folder named after the commit, so that an interrupted download goes on
where it stopped. `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean everywhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from factory.catalog.errors import CatalogError
from factory.catalog.weights import require_safetensors, wanted
from factory.config import HubSource


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[str, ...]


def resolve(source: HubSource) -> Snapshot:
    """Ask the hub which commit and which files stand behind a repository and revision.

    Raises `CatalogError` when the hub is out of reach, refuses, or has no safetensors there.
    """
    from huggingface_hub import HfApi

    with _explained(source):
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
            source.hub, revision=source.revision
        )
    names = [sibling.rfilename for sibling in info.siblings or []]
    require_safetensors(names, f"the hub's {source.hub}")
    if not info.sha:
        raise CatalogError(f"the hub does not say which commit '{source.hub}' stands at")
    return Snapshot(source.hub, info.sha, tuple(wanted(names)))


def download(
    source: HubSource,
    snapshot: Snapshot,
    downloads: Path,
    target: Path,
    progress: Callable[[str], None],
) -> None:
    """Fetch a snapshot by way of `downloads` (kept when interrupted) into `target`."""
    from huggingface_hub import snapshot_download

    staging = downloads / f"{snapshot.repo.replace('/', '--')}-{snapshot.commit[:12]}"
    progress(f"downloading {len(snapshot.files)} files of {snapshot.repo}")
    with _explained(source):
        snapshot_download(
            snapshot.repo,
            revision=snapshot.commit,
            local_dir=staging,
            allow_patterns=list(snapshot.files),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    for name in snapshot.files:
        (staging / name).replace(target / name)
    shutil.rmtree(staging)


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    """Turn the hub client's exceptions into one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CatalogError(
            f"the hub's {source.hub} is gated: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CatalogError(f"the hub's {source.hub} has no revision '{source.revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise CatalogError(
            f"the hub has no public model '{source.hub}'; check the spelling, or set HF_TOKEN "
            "when it is private"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise CatalogError(
            f"cannot fetch {source.hub}: HF_HUB_OFFLINE is set; unset it, or use a source with "
            "a path or a package"
        ) from error
    except Exception as error:  # its HTTP library, and so its errors, differ by version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CatalogError(
            f"the model hub is out of reach for {source.hub} ({reason}); check the network, or "
            "use a source with a path or a package"
        ) from error

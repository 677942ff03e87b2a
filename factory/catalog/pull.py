"""Bring a model's weights into the object store.

    model = pull(settings, "smollm2-135m", ObjectStore(settings.objects))
    model.path / "model.safetensors"

A model that is there already is found, not fetched again. Two pulls of the same model at once
do the work once: the second waits for the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factory.catalog import hub, package, weights
from factory.catalog.errors import CatalogError
from factory.catalog.objects import Object, ObjectStore
from factory.config import (
    HubSource,
    PackageSource,
    PathSource,
    ProviderSource,
    RegistrySource,
    Settings,
)

KIND = "models"
"""The kind of a pulled model in the object store."""

Weights = PackageSource | HubSource | PathSource
"""A source that has weights to pull."""

Progress = Callable[[str], None]
"""Told, in a few words, what is being done now."""


def _silent(_: str) -> None:
    """Tell nobody."""


def find(settings: Settings, name: str, store: ObjectStore) -> Object | None:
    """The stored weights of a catalog entry, from the source it names today; None if not pulled.

    Raises `CatalogError` when the catalog has no such model.
    """
    source = _source(settings, name)
    if isinstance(source, ProviderSource | RegistrySource):
        return None
    found = store.find(KIND, name)
    return found if found and found.meta.get("source") == _described(source) else None


def pull(
    settings: Settings,
    name: str,
    store: ObjectStore,
    progress: Progress = _silent,
    *,
    refresh: bool = False,
) -> Object:
    """The weights of a catalog entry as a stored folder: safetensors, config and tokenizer.

    `refresh` fetches again, for a hub branch or a folder that has moved on.
    Raises `CatalogError` when the model is unknown, its source is missing, or it has no weights.
    """
    source = _source(settings, name)
    if isinstance(source, ProviderSource):
        raise CatalogError(
            f"model '{name}' is answered by a provider ({source.model}); there is nothing to pull"
        )
    if isinstance(source, RegistrySource):
        raise CatalogError(
            f"model '{name}' is made here: its weights are the champion of '{source.name}'; "
            "there is nothing to pull"
        )
    with _one_at_a_time(store, name, progress):
        found = None if refresh else find(settings, name, store)
        if found is not None:
            return found
        downloads = store.root / ".downloads"
        return store.put(
            KIND,
            name,
            fill=lambda folder: _write(source, folder, downloads, progress),
            meta={"source": _described(source)},
        )


def _write(source: Weights, folder: Path, downloads: Path, progress: Progress) -> Mapping[str, Any]:
    """Fill `folder` with one source's model; returns what the manifest says about it."""
    if isinstance(source, PackageSource):
        where, revision = f"the package {source.package}", package.version(source)
        located = package.locate(source)
        if located.is_dir():
            _copy(located, folder, where, progress)
        else:
            package.convert(located, folder, progress)
    elif isinstance(source, HubSource):
        snapshot = hub.resolve(source)
        where, revision = f"the hub's {source.hub}", snapshot.commit
        hub.download(source, snapshot, downloads, folder, progress)
    else:
        where, revision = f"the folder '{source.path}'", "local"
        if not source.path.is_dir():
            raise CatalogError(f"{where} does not exist; correct the model's source.path")
        _copy(source.path, folder, where, progress)
    progress("checking the weights")
    return {"revision": revision, **weights.describe(folder, where)}


def _copy(source: Path, folder: Path, where: str, progress: Progress) -> None:
    weights.require_safetensors((entry.name for entry in source.iterdir()), where)
    progress(f"copying {source}")
    weights.copy(source, folder)


def _source(settings: Settings, name: str) -> Weights | ProviderSource | RegistrySource:
    if name not in settings.models:
        known = ", ".join(sorted(settings.models))
        raise CatalogError(f"the catalog has no model '{name}'; it has {known}")
    return settings.models[name].source


def _described(source: Weights) -> dict[str, Any]:
    return source.model_dump(mode="json")


@contextmanager
def _one_at_a_time(store: ObjectStore, name: str, progress: Progress) -> Iterator[None]:
    """Hold the model's lock; say so once when another pull holds it."""
    locks = store.root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{KIND}-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress(f"waiting for another pull of {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

"""A fitted router in the object store, beside the held-out estimates it is judged by.

    keep(store, "helpdesk", router, held, meta={"source": "labels.parquet"})
    fitted = newest(store, "helpdesk")           # None when nothing was fitted
    fitted.router.predict(text, embedding); fitted.held.p_good

The held-out rows are estimates and labels only: calibration and report need no prompt again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.catalog.objects import Object, ObjectStore
from factory.routing import learned
from factory.routing.errors import RoutingError
from factory.routing.labels import Table
from factory.routing.learned import Embedder, Router

KIND = "routers"
"""The kind of a fitted router in the object store; its name is the endpoint's."""

HELD = 0.3
"""Share of the labelled prompts that no router is fitted on, to calibrate and to report with."""

_FILE = "held.safetensors"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """Prompts that the router was not fitted on; only those whose every tier is labelled."""

    p_good: Floats
    """(n, tiers): what the router said."""
    good: Floats
    """(n, tiers): what was true."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A router as it is kept."""

    router: Router
    held: Held
    stored: Object
    """Its place in the object store; the hash names it in a calibration."""


def train(
    table: Table, embedder: Embedder, seed: int, progress: learned.Progress
) -> tuple[Router, Held]:
    """Fit on a part of the table and say what the router thinks of the rest.

    Raises `RoutingError` when the table is too small.
    """
    fitting, rest = table.split(1 - HELD, seed)
    router = learned.fit(fitting, embedder, seed, progress)
    rest = rest.rows(rest.complete())
    vectors = rest.embeddings
    if vectors is None:
        vectors = embedder.encode(rest.prompts or ())
    return router, Held(p_good=router.predict_many(rest.prompts, vectors), good=rest.good)


def keep(
    store: ObjectStore, endpoint: str, router: Router, held: Held, meta: Mapping[str, Any]
) -> Object:
    """Store a router for an endpoint. Raises `CatalogError` when that fails."""
    from safetensors.numpy import save_file

    def fill(folder: Path) -> None:
        router.save(folder)
        arrays = {"p_good": held.p_good, "good": held.good}
        save_file(
            {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()},
            str(folder / _FILE),
        )

    return store.put(KIND, endpoint, fill, meta)


def newest(store: ObjectStore, endpoint: str) -> Fitted | None:
    """The router that was stored last for an endpoint. Raises `RoutingError` if it is damaged."""
    found = store.find(KIND, endpoint)
    return None if found is None else read(found)


def read(stored: Object) -> Fitted:
    """A stored router. Raises `RoutingError` if it is damaged."""
    from safetensors.numpy import load_file

    router = learned.load(stored.path)
    try:
        arrays = load_file(str(stored.path / _FILE))
        held = Held(p_good=arrays["p_good"], good=arrays["good"])
    except Exception as error:  # safetensors raises its own
        raise RoutingError(f"'{stored.path / _FILE}' cannot be read: {error}") from error
    tiers = len(router.meta.tiers)
    if held.p_good.shape != held.good.shape or held.good.shape[1:] != (tiers,):
        raise RoutingError(f"'{stored.path / _FILE}' does not fit its router: fit it again")
    return Fitted(router=router, held=held, stored=stored)

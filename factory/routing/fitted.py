"""A fitted router in the object store, beside the held-out estimates it is judged by.

    lesson = teach(table, embedder, encoder, 0, print)          # what a neural encoder sees …
    router, held = train(table, embedder, 0, print, lesson.hints)   # … taught to a fast router
    keep(store, "helpdesk", router, held, {"source": "labels.parquet"}, lesson.beside(held, "e"))
    fitted = newest(store, "helpdesk")           # None when nothing was fitted
    fitted.router.predict(text, embedding); fitted.held.p_good
    fitted.deep.router.predict(text, joined(embedding, vector))     # with an encoder; may be None

The held-out rows are estimates and labels only: calibration and report need no prompt again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.catalog.objects import Object, ObjectStore
from factory.routing import learned
from factory.routing.calibration import gains
from factory.routing.errors import RoutingError
from factory.routing.labels import Table
from factory.routing.learned import Embedder, Router

KIND = "routers"
"""The kind of a fitted router in the object store; its name is the endpoint's."""

HELD = 0.3
"""Share of the labelled prompts that no router is fitted on, to calibrate and to report with."""

TIMED = 20
"""Prompts that the encoder is timed with."""

_FILE = "held.safetensors"
_DEEP = "deep"
_ENCODER = "encoder.json"
_BLOCK = 256

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deep:
    """A second router, which sees an encoder's vector beside the static one."""

    router: Router
    model: str
    """The encoder's name in the catalog."""
    p_good: Floats
    """(n, tiers): what it said of the held-out prompts."""
    spread: float
    """Standard deviation of its gain around the first router's, on those prompts."""
    ms: float
    """Median milliseconds of the encoder for one prompt, when the router was fitted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """Prompts that the router was not fitted on; only those whose every tier is labelled."""

    p_good: Floats
    """(n, tiers): what the router said."""
    good: Floats
    """(n, tiers): what was true."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """A router that sees an encoder's vector, and what it has to teach one that does not."""

    router: Router
    hints: Floats
    """(n, tiers): what it said, out of fold, of the prompts that `train` fits on."""
    p_good: Floats
    """(held out, tiers): what it says of the prompts that no router was fitted on."""
    ms: float
    """Median milliseconds of the encoder for one prompt."""

    def beside(self, held: Held, model: str) -> Deep:
        """The second router of a gateway that serves the encoder under the name `model`."""
        apart = gains(self.p_good)[:, :-1] - gains(held.p_good)[:, :-1]
        spread = float(apart.std()) if apart.size else 0.0
        return Deep(router=self.router, model=model, p_good=self.p_good, spread=spread, ms=self.ms)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A router as it is kept."""

    router: Router
    held: Held
    deep: Deep | None
    """None unless it was fitted with an encoder."""
    stored: Object
    """Its place in the object store; the hash names it in a calibration."""


def train(
    table: Table,
    embedder: Embedder,
    seed: int,
    progress: learned.Progress,
    hints: Floats | None = None,
) -> tuple[Router, Held]:
    """Fit on a part of the table and say what the router thinks of the rest.

    `hints` are those of a `Lesson` on the same table and seed. Raises `RoutingError` when the
    table is too small.
    """
    fitting, rest = table.split(1 - HELD, seed)
    router = learned.fit(fitting, embedder, seed, progress, hints=hints)
    rest = rest.rows(rest.complete())
    vectors = rest.embeddings
    if vectors is None:
        vectors = embedder.encode(rest.prompts or ())
    return router, Held(p_good=router.predict_many(rest.prompts, vectors), good=rest.good)


def joined(static: Floats, encoded: Floats) -> Floats:
    """The vector that a deep router takes: (…, dimensions of both)."""
    both: Floats = np.concatenate([static, encoded], axis=-1).astype(np.float32, copy=False)
    return both


def teach(
    table: Table,
    embedder: Embedder,
    encoder: Embedder,
    seed: int,
    progress: learned.Progress,
) -> Lesson:
    """A router on the encoder's vectors too, with the split of `train`.

    Labels are coins: what this one says of a prompt it was not fitted on is closer to the chance
    of a good answer than the answer's label, so a router that sees less learns more from both
    (Vapnik and Izmailov, "Learning Using Privileged Information", 2015; Lopez-Paz et al.,
    "Unifying distillation and privileged information", 2016). Raises `RoutingError` without
    prompts.
    """
    if table.prompts is None:
        raise RoutingError(
            "an encoder needs prompts, and the ledger keeps none: give a labelled table (--data)"
        )
    fitting, rest = table.split(1 - HELD, seed)
    rest = rest.rows(rest.complete())
    taken = []
    for text in (fitting.prompts or ())[:TIMED]:
        begun = time.perf_counter()
        encoder.encode([text])
        taken.append((time.perf_counter() - begun) * 1000)
    static = embedder.encode(fitting.prompts or ())
    deep = _encoded(encoder, [*(fitting.prompts or ()), *(rest.prompts or ())], progress)
    seen = replace(fitting, embeddings=joined(static, deep[: len(fitting)]))
    router, hints = learned.fit_and_hold(seen, None, seed, progress, static=static.shape[1])
    p_good = np.zeros((0, len(table.tiers)), np.float32)
    if len(rest):
        vectors = joined(embedder.encode(rest.prompts or ()), deep[len(fitting) :])
        p_good = router.predict_many(rest.prompts, vectors)
    return Lesson(router=router, hints=hints, p_good=p_good, ms=float(np.median(taken)))


def _encoded(encoder: Embedder, texts: Sequence[str], progress: learned.Progress) -> Floats:
    """Vectors of texts in their order; the short ones first, so that batches waste little."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = []
    for start in range(0, len(texts), _BLOCK):
        parts.append(encoder.encode([texts[row] for row in order[start : start + _BLOCK]]))
        progress(f"encoded {min(start + _BLOCK, len(texts))} of {len(texts)} prompts")
    found = np.concatenate(parts)
    out = np.empty_like(found)
    out[order] = found
    return out


def keep(
    store: ObjectStore,
    endpoint: str,
    router: Router,
    held: Held,
    meta: Mapping[str, Any],
    deep: Deep | None = None,
) -> Object:
    """Store a router for an endpoint. Raises `CatalogError` when that fails."""
    from safetensors.numpy import save_file

    def fill(folder: Path) -> None:
        router.save(folder)
        arrays = {"p_good": held.p_good, "good": held.good}
        if deep is not None:
            (folder / _DEEP).mkdir()
            deep.router.save(folder / _DEEP)
            about = {"model": deep.model, "spread": deep.spread, "ms": deep.ms}
            (folder / _DEEP / _ENCODER).write_text(json.dumps(about) + "\n", "utf-8")
            arrays["p_deep"] = deep.p_good
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
        deep = _deep(stored.path / _DEEP, arrays)
    except RoutingError:
        raise
    except Exception as error:  # safetensors raises its own
        raise RoutingError(f"'{stored.path / _FILE}' cannot be read: {error}") from error
    tiers = len(router.meta.tiers)
    if held.p_good.shape != held.good.shape or held.good.shape[1:] != (tiers,):
        raise RoutingError(f"'{stored.path / _FILE}' does not fit its router: fit it again")
    if deep is not None and (
        deep.p_good.shape != held.good.shape or deep.router.meta.tiers != router.meta.tiers
    ):
        raise RoutingError(f"'{stored.path / _DEEP}' does not fit its router: fit it again")
    return Fitted(router=router, held=held, deep=deep, stored=stored)


def _deep(folder: Path, arrays: Mapping[str, Floats]) -> Deep | None:
    if not folder.is_dir():
        return None
    about = json.loads((folder / _ENCODER).read_text("utf-8"))
    return Deep(
        router=learned.load(folder),
        model=str(about["model"]),
        p_good=arrays["p_deep"],
        spread=float(about["spread"]),
        ms=float(about["ms"]),
    )

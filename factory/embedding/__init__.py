"""Text to vectors: a static embedder that needs microseconds, and a real encoder."""

"""What the gateway asks of anything that generates text or makes embeddings.

Bodies, completions and chunks are OpenAI's objects as plain dictionaries; the route says whether
they are those of `chat/completions` or of `completions`.
Two implementations: `factory.gateway.provider` over HTTP, `serve_apps.ray_engine` on Ray Serve.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""One row a text."""

Route = Literal["chat", "completions", "embeddings", "store", "file", "search"]
"""Which of OpenAI's routes a request came by; the last three are those of vector stores."""
Body = dict[str, Any]
"""An OpenAI request."""
Completion = dict[str, Any]
"""An OpenAI `chat.completion` or `text_completion`."""
Chunk = dict[str, Any]
"""An OpenAI `chat.completion.chunk` or a streamed `text_completion`."""


class EngineError(Exception):
    """An engine that did not answer; the message is safe to show to a client."""

    def __init__(
        self,
        status: int,
        message: str,
        retryable: bool,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    @property
    def rejected(self) -> bool:
        """True when the engine found the request itself at fault."""
        return self.status in (400, 413, 422)


def with_logprobs(body: Body, route: Route = "chat") -> Body:
    """`body` asking for the log-probabilities by which an answer is judged."""
    if route == "completions":
        return {**body, "logprobs": body.get("logprobs") or 0}
    return {**body, "logprobs": True}


class Engine(Protocol):
    """Generates an answer, whole or as a stream."""

    async def answer(self, body: Body, route: Route = "chat") -> Completion:
        """The whole answer. Raises `EngineError`."""
        ...

    def stream(self, body: Body, route: Route = "chat") -> AsyncGenerator[Chunk, None]:
        """The answer in chunks, the last one with `usage`. Closing it stops the generation.

        Raises `EngineError`, also between chunks.
        """
        ...

    async def check(self) -> None:
        """Return when the engine can take requests. Raises `EngineError` when it cannot."""
        ...


class Sleeper(Protocol):
    """An engine that goes to zero while nobody asks."""

    @property
    def asleep(self) -> bool:
        """True while it would have to be woken; may be a second old."""
        ...

    async def wake(self) -> None:
        """Return when it answers. Raises `EngineError` when it does not come up."""
        ...


class EmbeddingEngine(Protocol):
    """Turns texts into vectors."""

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Float32 vectors of shape (texts, dimensions), and the tokens of each text.

        Raises `EngineError`.
        """
        ...

    async def check(self) -> None:
        """Return when the engine can take requests. Raises `EngineError` when it cannot."""
        ...

"""What the gateway asks of anything that generates text.

Bodies, completions and chunks are OpenAI's `chat/completions` objects as plain dictionaries.
Two implementations: `factory.gateway.provider` over HTTP, `serve_apps.engine` on Ray Serve.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

Body = dict[str, Any]
"""An OpenAI chat request."""
Completion = dict[str, Any]
"""An OpenAI `chat.completion`."""
Chunk = dict[str, Any]
"""An OpenAI `chat.completion.chunk`."""


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


class Engine(Protocol):
    """Generates an answer, whole or as a stream."""

    async def chat(self, body: Body) -> Completion:
        """The whole answer. Raises `EngineError`."""
        ...

    def stream(self, body: Body) -> AsyncGenerator[Chunk, None]:
        """The answer in chunks, the last one with `usage`. Closing it stops the generation.

        Raises `EngineError`, also between chunks.
        """
        ...

    async def check(self) -> None:
        """Return when the engine can take requests. Raises `EngineError` when it cannot."""
        ...

"""An OpenAI-compatible provider as an engine, through the `openai` client.

    engine = OpenAIEngine("https://provider.example/v1", "some-model", api_key)
    await engine.answer({"messages": [...]})

The gateway decides about retries and failover, so the client itself never retries. Errors carry
the provider's own message; the key never appears in them.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import openai
from pydantic import SecretStr

from factory.config import Model, ProviderSource
from factory.gateway.answers import garbage
from factory.gateway.engine import Body, Chunk, Completion, EngineError, Route, Vectors
from factory.gateway.served import Served

TIMEOUT = openai.Timeout(120.0, connect=5.0)
"""Seconds to wait for a provider; 5 of them for the connection."""

_MESSAGE_LENGTH = 300
_PASSING = (408, 409, 425, 429)


class OpenAIEngine:
    """Asks one model of one provider."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: SecretStr,
        timeout: openai.Timeout = TIMEOUT,
    ) -> None:
        self.model = model
        self._key = api_key
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key.get_secret_value(),
            max_retries=0,
            timeout=timeout,
        )

    async def answer(self, body: Body, route: Route = "chat") -> Completion:
        """The whole answer. Raises `EngineError`."""
        try:
            raw = await self._resource(route).with_raw_response.create(
                **{**body, "model": self.model}
            )
            completion = raw.http_response.json()
        except Exception as error:
            raise self._translate(error) from None
        if not isinstance(completion, dict):
            raise garbage()
        return completion

    async def stream(self, body: Body, route: Route = "chat") -> AsyncGenerator[Chunk, None]:
        """The answer in chunks, the last one with `usage`. Raises `EngineError`."""
        asked: Any = {
            **body,
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with await self._resource(route).create(**asked) as chunks:
                async for chunk in chunks:
                    yield chunk.model_dump(exclude_unset=True)
        except Exception as error:
            raise self._translate(error) from None

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Vectors of shape (texts, dimensions), and the tokens of each text.

        A provider counts all texts together; each gets a share by its length.
        Raises `EngineError`.
        """
        try:
            raw = await self._client.embeddings.with_raw_response.create(
                model=self.model, input=list(texts), encoding_format="float"
            )
            return _vectors(raw.http_response.json(), texts)
        except Exception as error:
            raise self._translate(error) from None

    def _resource(self, route: Route) -> Any:
        return self._client.completions if route == "completions" else self._client.chat.completions

    async def check(self) -> None:
        """Return when the provider answers. Raises `EngineError`."""
        try:
            await self._client.models.list()
        except Exception as error:
            raise self._translate(error) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _translate(self, error: Exception) -> EngineError:
        """Any exception of the client; those of its HTTP library are known by their package only,
        which differs between versions of the client."""
        if isinstance(error, openai.APITimeoutError) or type(error).__name__.endswith("Timeout"):
            return EngineError(504, "the provider did not answer in time", retryable=False)
        if isinstance(error, openai.APIStatusError):
            return self._refused(error)
        from_transport = type(error).__module__.startswith("http")
        if isinstance(error, openai.APIConnectionError) or from_transport:
            return EngineError(503, "the connection to the provider failed", retryable=True)
        if isinstance(error, openai.APIError):
            text = self._clean(error.message)
            return EngineError(502, f"the provider reports: {text}", retryable=True)
        return garbage()

    def _refused(self, error: openai.APIStatusError) -> EngineError:
        status = error.status_code
        if status in (401, 403):
            return EngineError(status, "the provider refuses our key", retryable=False)
        return EngineError(
            status,
            f"the provider answered {status}: {self._clean(error.message)}",
            retryable=status >= 500 or status in _PASSING,
            retry_after_s=_retry_after(error.response.headers.get("retry-after")),
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key.get_secret_value() or "\0", "***")[:_MESSAGE_LENGTH]


def _vectors(reply: Any, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
    rows = sorted(reply["data"], key=lambda row: int(row["index"]))
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    if len(rows) != len(texts) or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError("these are not the embeddings of the texts")
    return vectors, _shares(int(reply["usage"]["prompt_tokens"]), [len(text) for text in texts])


def _shares(total: int, lengths: Sequence[int]) -> list[int]:
    """`total` divided by length, without losing or adding any."""
    ends = [total * done // max(sum(lengths), 1) for done in accumulate(lengths)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _retry_after(header: str | None) -> float | None:
    """Seconds; a date or nonsense counts as no wish, and an hour is the longest one."""
    try:
        seconds = float(header) if header else math.nan
    except ValueError:
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), 3600.0)


def serve_provider(name: str, model: Model) -> Served:
    """The catalog entry `name` of a provider, on its tier; switched off while its key is missing.

    Raises `ValueError` for a model that is not a provider's.
    """
    source = model.source
    if not isinstance(source, ProviderSource):
        raise ValueError(
            f"models.{name} is not served by a provider; it has engine '{model.engine}'"
        )
    off = "" if source.ready else f"models.{name} has no base_url or api_key set"
    return Served(
        model=name,
        tier=model.tier,
        version=source.model,
        label=name,
        price=model.price,
        engine=OpenAIEngine(
            source.base_url or "http://127.0.0.1:9/v1",
            source.model,
            source.api_key if source.ready else SecretStr("unset"),
        ),
        max_model_len=model.max_model_len,
        external=True,
        off=off,
    )

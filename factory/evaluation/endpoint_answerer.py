"""Answers from any OpenAI-compatible URL: the factory's own gateway, an engine, a provider.

    answerer = EndpointAnswerer("http://127.0.0.1:8000/v1", api_key, "helpdesk", concurrency=8)

A request that fails is an answer with an error text: the harness counts it as wrong.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, cast

from openai import OpenAI, OpenAIError

from factory.evaluation.answerer import Answer, Chat, Progress
from factory.evaluation.results import Identity


class EndpointAnswerer:
    """Chat completions over HTTP, at most `concurrency` at a time, greedy."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_retries: int = 2,
    ) -> None:
        self._client = OpenAI(
            base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=max_retries
        )
        self._model, self._concurrency = model, concurrency
        self.identity = Identity(
            backend="endpoint",
            model=model,
            versions={"openai": version("openai")},
            settings={"base_url": base_url, "decoding": "greedy", "concurrency": concurrency},
        )

    def answer(
        self, chats: Sequence[Chat], max_new_tokens: int, progress: Progress
    ) -> list[Answer]:
        """Answer every conversation; errors become answers with an error text."""
        lock = threading.Lock()

        def one(chat: Chat) -> Answer:
            found = self._ask(chat, max_new_tokens)
            with lock:
                progress(1)
            return found

        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(one, chats))

    def _ask(self, chat: Chat, max_new_tokens: int) -> Answer:
        start = time.perf_counter()
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=cast(Any, [dict(message) for message in chat]),
                max_tokens=max_new_tokens,
                temperature=0,
                logprobs=True,
            )
            choice = reply.choices[0]
        except (OpenAIError, IndexError, TypeError) as error:
            return Answer(
                text="",
                latency_ms=_since(start),
                prompt_tokens=0,
                completion_tokens=0,
                error=f"{type(error).__name__}: {error}",
            )
        tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
        return Answer(
            text=choice.message.content or "",
            latency_ms=_since(start),
            prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
            completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
            confidence=math.exp(sum(t.logprob for t in tokens) / len(tokens)) if tokens else None,
        )


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000

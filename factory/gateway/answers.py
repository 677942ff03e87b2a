"""What a model said, in one plain form, from a whole completion or gathered from a stream.

answer = whole(completion)             # EngineError when it is not an OpenAI completion
gathered = Gathering(); gathered.add(chunk); gathered.answer(prompt_tokens=12)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.gateway.engine import Chunk, Completion, EngineError

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English text, used only when an engine reports no token counts."""

_MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[Mapping[str, Any], ...] | None
    """OpenAI's entries, one a token; None when the engine gave none."""
    estimated: bool = False
    """The token counts are estimates, since the engine reported none."""

    @property
    def token_logprobs(self) -> list[float] | None:
        """Log-probability of each generated token."""
        return None if self.logprobs is None else [_logprob(entry) for entry in self.logprobs]


def estimate_tokens(characters: int) -> int:
    """Tokens in a text of that length, rounded up."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def whole(completion: Completion, prompt_tokens: int) -> Answer:
    """The answer in an OpenAI completion. Raises `EngineError` 502 when it is something else.

    `prompt_tokens` is believed only when the completion has no usage.
    """
    try:
        choice = completion["choices"][0]
        text = choice["message"].get("content") or ""
        finish = choice.get("finish_reason") or "stop"
        logprobs = _entries(choice)
        gathered = Gathering(parts=[text], finish_reason=finish)
        gathered.entries = logprobs or []
        gathered.has_logprobs = logprobs is not None
        gathered.read_usage(completion)
        return gathered.answer(prompt_tokens)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise garbage() from error


def garbage() -> EngineError:
    """The error for an engine that speaks something else than OpenAI's protocol."""
    return EngineError(502, "the engine's reply is not an OpenAI completion", retryable=True)


@dataclass(slots=True)
class Gathering:
    """A streamed answer, as far as it has arrived."""

    parts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    entries: list[Mapping[str, Any]] = field(default_factory=list)
    has_logprobs: bool = False
    chunks: int = 0
    usage: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in one chunk. Raises `EngineError` 502 when it is not one."""
        try:
            self.read_usage(chunk)
            for choice in chunk["choices"][:1]:
                text = choice["delta"].get("content")
                if text:
                    self.parts.append(text)
                    self.chunks += 1
                logprobs = _entries(choice)
                if logprobs is not None:
                    self.entries += logprobs
                    self.has_logprobs = True
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise garbage() from error

    def read_usage(self, reply: Mapping[str, Any]) -> None:
        """Take the token counts from a completion or a chunk, if it has any."""
        usage = reply.get("usage")
        if usage:
            counts = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
            if min(counts) < 0 or max(counts) > _MOST_TOKENS:
                raise ValueError(f"{counts} are not token counts")
            self.usage = counts

    @property
    def text(self) -> str:
        """Everything said so far."""
        return "".join(self.parts)

    def answer(self, prompt_tokens: int) -> Answer:
        """The answer so far.

        Without usage, as in an aborted stream, tokens are counted by log-probabilities, else by
        chunks or by length, whichever is more, and `prompt_tokens` is the caller's own count.
        """
        text = self.text
        counted = self.usage
        if counted is None:
            generated = len(self.entries) or max(self.chunks, estimate_tokens(len(text)))
            counted = prompt_tokens, generated
        return Answer(
            text=text,
            finish_reason=self.finish_reason or "stop",
            prompt_tokens=counted[0],
            completion_tokens=counted[1],
            logprobs=tuple(self.entries) if self.has_logprobs else None,
            estimated=self.usage is None,
        )


def _entries(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    for entry in content:
        _logprob(entry)
    return list(content)


def _logprob(entry: Mapping[str, Any]) -> float:
    return float(entry["logprob"])

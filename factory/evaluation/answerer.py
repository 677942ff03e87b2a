"""What answers a suite's questions: the seam between the harness and a model.

`transformers_answerer.py` runs weights in this process, `endpoint_answerer.py` asks any
OpenAI-compatible URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from factory.evaluation.results import EvaluationError, Identity

Chat = Sequence[Mapping[str, str]]
"""A conversation: messages with `role` and `content`."""

Progress = Callable[[int], None]
"""Told how many more cases are finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer and what it took; latency in milliseconds."""

    text: str
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    confidence: float | None = None
    error: str | None = None


class PromptTooLong(EvaluationError):
    """The prompt at `index`, with the answer's room, does not fit the context; sizes in tokens."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(f"prompt {index} has {tokens} tokens where {limit} fit")
        self.index, self.tokens, self.limit = index, tokens, limit


class Answerer(Protocol):
    """Answers conversations, in order."""

    @property
    def identity(self) -> Identity:
        """Who answers, known before any answer is given."""
        ...

    def answer(
        self, chats: Sequence[Chat], max_new_tokens: int, progress: Progress
    ) -> list[Answer]:
        """One answer a conversation. Raises `PromptTooLong` before answering any."""
        ...

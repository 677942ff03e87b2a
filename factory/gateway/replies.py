"""What goes over the wire: completions and server-sent events, rendered once, stamped per use.

    rendered = render(answer, label="smollm2-135m@1", logprobs=False)
    rendered.completion(stamp)            # b'{"id": ...}'
    rendered.replay(stamp, figures, ...)  # b'data: {...}\\n\\n ... data: [DONE]\\n\\n'

The figures of a stream (tier, cost, ...) are sent in an SSE comment `: factory {...}` right before
`[DONE]`, which every client ignores, and as `factory` in the usage chunk when one was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from factory.gateway.answers import Answer
from factory.gateway.engine import Chunk
from factory.gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What differs between two deliveries of the same answer."""

    request_id: str
    created: int
    """Unix time in seconds."""

    def head(self) -> bytes:
        """The opening of a JSON object, up to the part that is rendered once."""
        return b'{"id":"%b","created":%d,' % (self.request_id.encode(), self.created)


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer as JSON, everything but the stamp."""

    whole: bytes
    chunks: tuple[bytes, ...]
    usage: bytes

    def completion(self, stamp: Stamp) -> bytes:
        """The body of a `chat.completion`."""
        return stamp.head() + self.whole

    def replay(self, stamp: Stamp, figures: bytes, include_usage: bool) -> bytes:
        """The answer as a finished stream."""
        head = b"data: " + stamp.head()
        events = [head + chunk for chunk in self.chunks]
        events.append(self.ending(stamp, figures, include_usage))
        return b"".join(events)

    def ending(self, stamp: Stamp, figures: bytes, include_usage: bool) -> bytes:
        """What follows the last token: usage if asked for, figures, `[DONE]`."""
        comment = b": factory " + figures + b"\n\n" + DONE
        if not include_usage:
            return comment
        head = b"data: " + stamp.head()
        return head + self.usage + b',"factory":' + figures + b"}\n\n" + comment


def render(answer: Answer, label: str, logprobs: bool) -> Rendered:
    """`answer` as said by the model called `label`; log-probabilities only if asked for."""
    shown = {"content": answer.logprobs} if logprobs and answer.logprobs is not None else None
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": shown,
        "finish_reason": answer.finish_reason,
    }
    completion = {
        "object": "chat.completion",
        "model": label,
        "choices": [choice],
        "usage": usage,
    }
    said = {"role": "assistant", "content": answer.text}
    return Rendered(
        whole=_tail(completion),
        chunks=(
            _chunk_tail(label, said, shown, None),
            _chunk_tail(label, {}, None, answer.finish_reason),
        ),
        usage=_tail(
            {"object": "chat.completion.chunk", "model": label, "choices": [], "usage": usage}
        )[:-1],
    )


def relayed(stamp: Stamp, label: str, chunk: Chunk, logprobs: bool) -> bytes:
    """One engine chunk as an event for the client; empty when it carries nothing for it."""
    choices = chunk["choices"]
    if not choices:
        return b""
    choice = choices[0]
    delta = {key: choice["delta"][key] for key in ("role", "content") if key in choice["delta"]}
    finish = choice.get("finish_reason")
    if not delta and not finish:
        return b""
    shown = choice.get("logprobs") if logprobs else None
    return b"data: " + stamp.head() + _chunk_tail(label, delta, shown, finish)


def error_event(error: ApiError) -> bytes:
    """An error after the first token, as an event that OpenAI clients raise."""
    return b"data: " + error.body() + b"\n\n"


def _chunk_tail(
    label: str, delta: Mapping[str, Any], logprobs: object, finish_reason: str | None
) -> bytes:
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }
    tail = _tail({"object": "chat.completion.chunk", "model": label, "choices": [choice]})
    return tail + b"\n\n"


def _tail(fields: Mapping[str, Any]) -> bytes:
    return to_json(fields)[1:]

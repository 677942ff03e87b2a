"""What goes over the wire: completions and server-sent events, rendered once, stamped per use.

    rendered = render(answer, label="smollm2-135m@1", logprobs=False)
    rendered.completion(stamp)            # b'{"id": ...}'
    rendered.replay(stamp, figures, ...)  # b'data: {...}\\n\\n ... data: [DONE]\\n\\n'

The figures of a stream (tier, cost, ...) are sent in an SSE comment `: factory {...}` right before
`[DONE]`, which every client ignores, and as `factory` in the usage chunk when one was asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from factory.gateway.answers import Answer, Choice, Entry, ToolCall
from factory.gateway.engine import Chunk, Route
from factory.gateway.errors import ApiError

JSON = "application/json"
EVENTS = "text/event-stream"

DONE = b"data: [DONE]\n\n"

_DELTA = ("role", "content", "tool_calls", "refusal")


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply."""

    body: bytes
    headers: Mapping[str, str]
    media_type: str = JSON
    status: int = 200


@dataclass(frozen=True, slots=True)
class Events:
    """A reply that is still being generated. Whoever takes it must close `events`."""

    events: AsyncGenerator[bytes, None]
    headers: Mapping[str, str]


Opening = Callable[[], Coroutine[Any, Any, Reply | Events]]
"""Begins a stream when called. Cancelling it leaves the answer to the others who wait for it."""


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
        """The body of a `chat.completion` or `text_completion`."""
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


def render(answer: Answer, label: str, logprobs: bool, route: Route = "chat") -> Rendered:
    """`answer` as said by the model called `label`; log-probabilities only if asked for."""
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    in_text = route == "completions"
    chosen = [
        (_text_choice if in_text else _chat_choice)(index, choice, logprobs)
        for index, choice in enumerate(answer.choices)
    ]
    said = [
        delta
        for index, choice in enumerate(answer.choices)
        for delta in (_text_deltas if in_text else _chat_deltas)(index, choice, logprobs)
    ]
    kinds = _kinds(route)
    return Rendered(
        whole=_tail({"object": kinds[0], "model": label, "choices": chosen, "usage": usage}),
        chunks=tuple(_chunk(kinds[1], label, [delta]) for delta in said),
        usage=_tail({"object": kinds[1], "model": label, "choices": [], "usage": usage})[:-1],
    )


def relayed(stamp: Stamp, label: str, chunk: Chunk, logprobs: bool) -> bytes:
    """One engine chunk as an event for the client; empty when it carries nothing for it."""
    in_text = any("text" in choice for choice in chunk["choices"])
    passed_on = _relayed_text if in_text else _relayed_delta
    said = [one for choice in chunk["choices"] if (one := passed_on(choice, logprobs))]
    if not said:
        return b""
    kind = _kinds("completions" if in_text else "chat")[1]
    return b"data: " + stamp.head() + _chunk(kind, label, said)


def error_event(error: ApiError) -> bytes:
    """An error after the first token, as an event that OpenAI clients raise."""
    return b"data: " + error.body() + b"\n\n"


def _kinds(route: Route) -> tuple[str, str]:
    """The `object` of a whole answer and of a chunk."""
    if route == "completions":
        return "text_completion", "text_completion"
    return "chat.completion", "chat.completion.chunk"


def _chat_choice(index: int, choice: Choice, logprobs: bool) -> dict[str, Any]:
    silent = not choice.text and (choice.tool_calls or choice.refusal)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if silent else choice.text,
        "refusal": choice.refusal,
    }
    if choice.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return {
        "index": index,
        "message": message,
        "logprobs": _shown(choice, logprobs),
        "finish_reason": choice.finish_reason,
    }


def _chat_deltas(index: int, choice: Choice, logprobs: bool) -> list[dict[str, Any]]:
    delta: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.refusal is not None:
        delta["refusal"] = choice.refusal
    if choice.tool_calls:
        delta["tool_calls"] = [
            {"index": place, **_tool_call(call)} for place, call in enumerate(choice.tool_calls)
        ]
    shown = _shown(choice, logprobs)
    return [
        {"index": index, "delta": delta, "logprobs": shown, "finish_reason": None},
        {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason},
    ]


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _shown(choice: Choice, logprobs: bool) -> dict[str, Any] | None:
    if not logprobs or choice.logprobs is None:
        return None
    return {"content": choice.logprobs, "refusal": None}


def _text_choice(index: int, choice: Choice, logprobs: bool) -> dict[str, Any]:
    entries = choice.logprobs if logprobs else None
    return {
        "index": index,
        "text": choice.text,
        "logprobs": None if entries is None else _columns(entries),
        "finish_reason": choice.finish_reason,
    }


def _text_deltas(index: int, choice: Choice, logprobs: bool) -> list[dict[str, Any]]:
    return [
        {**_text_choice(index, choice, logprobs), "finish_reason": None},
        {"index": index, "text": "", "logprobs": None, "finish_reason": choice.finish_reason},
    ]


def _columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """Log-probabilities as text completions have them; offsets count from the answer's start."""
    tokens = [entry["token"] for entry in entries]
    tops = [
        {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()}
        for entry in entries
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)) if tokens else [],
    }


def _relayed_delta(choice: Mapping[str, Any], logprobs: bool) -> dict[str, Any] | None:
    delta = {key: choice["delta"][key] for key in _DELTA if choice["delta"].get(key) is not None}
    finish = choice.get("finish_reason")
    if not delta and not finish:
        return None
    return {
        "index": choice.get("index") or 0,
        "delta": delta,
        "logprobs": choice.get("logprobs") if logprobs else None,
        "finish_reason": finish,
    }


def _relayed_text(choice: Mapping[str, Any], logprobs: bool) -> dict[str, Any] | None:
    text, finish = choice.get("text") or "", choice.get("finish_reason")
    if not text and not finish:
        return None
    return {
        "index": choice.get("index") or 0,
        "text": text,
        "logprobs": choice.get("logprobs") if logprobs else None,
        "finish_reason": finish,
    }


def _chunk(kind: str, label: str, choices: Sequence[Mapping[str, Any]]) -> bytes:
    return _tail({"object": kind, "model": label, "choices": choices}) + b"\n\n"


def _tail(fields: Mapping[str, Any]) -> bytes:
    return to_json(fields)[1:]

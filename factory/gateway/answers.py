"""What a model said, in one plain form, from a whole completion or gathered from a stream.

answer = whole(completion)             # EngineError when it is not an OpenAI completion
gathered = Gathering(); gathered.add(chunk); gathered.answer(prompt_tokens=12)
Answer.from_dict(answer.as_dict()) == answer     # plain JSON, for a cache that outlives a process

Chats and text completions end in the same form: the log-probabilities of the older route, which
are columns, are turned into the entries of the newer one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.gateway.engine import Chunk, Completion, EngineError

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English text, used only when an engine reports no token counts."""

_MOST_TOKENS = 10**9
_MOST_PARTS = 128
"""Choices in an answer and calls in a choice; an engine that sends more is broken."""

Entry = Mapping[str, Any]
"""OpenAI's log-probability of one token: `token`, `logprob`, `bytes`, `top_logprobs`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a request."""

    text: str
    finish_reason: str
    logprobs: tuple[Entry, ...] | None = None
    """OpenAI's entries, one a token; None when the engine gave none."""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, of one or several choices."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    """Of all choices together."""
    estimated: bool = False
    """The token counts are estimates, since the engine reported none."""

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """Why the first choice ends."""
        return self.choices[0].finish_reason

    @property
    def token_logprobs(self) -> list[float] | None:
        """Log-probability of each generated token of all choices; None when one has none."""
        found: list[float] = []
        for choice in self.choices:
            if choice.logprobs is None:
                return None
            found += [_logprob(entry) for entry in choice.logprobs]
        return found

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text a client would read: of each choice its text, refusal and call arguments."""
        return tuple(
            text
            for choice in self.choices
            for text in (
                choice.text,
                *(() if choice.refusal is None else (choice.refusal,)),
                *(call.arguments for call in choice.tool_calls),
            )
        )

    def with_texts(self, texts: Sequence[str]) -> Answer:
        """The same answer with other texts, in the order of `texts`.

        A choice whose text changes loses its log-probabilities, which spell the former one.
        Raises `ValueError` when there are more or fewer texts.
        """
        if len(texts) != len(self.texts):
            raise ValueError(f"the answer has {len(self.texts)} texts, not {len(texts)}")
        rest = iter(texts)
        choices = []
        for choice in self.choices:
            text = next(rest)
            refusal = None if choice.refusal is None else next(rest)
            calls = tuple(
                dataclasses.replace(call, arguments=next(rest)) for call in choice.tool_calls
            )
            changed = Choice(text, choice.finish_reason, choice.logprobs, calls, refusal)
            if changed != choice:
                changed = dataclasses.replace(changed, logprobs=None)
            choices.append(changed)
        return dataclasses.replace(self, choices=tuple(choices))

    def as_dict(self) -> dict[str, Any]:
        """The answer as plain JSON."""
        # By hand: `dataclasses.asdict` copies deeply, and this runs for every answer that is kept.
        return {
            "choices": [
                {
                    "text": one.text,
                    "finish_reason": one.finish_reason,
                    "logprobs": one.logprobs,
                    "tool_calls": [
                        {"id": call.id, "name": call.name, "arguments": call.arguments}
                        for call in one.tool_calls
                    ],
                    "refusal": one.refusal,
                }
                for one in self.choices
            ],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "estimated": self.estimated,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Answer:
        """The answer that `as_dict` wrote. Raises `ValueError` for anything else."""
        try:
            choices = tuple(_choice(one) for one in fields["choices"])
            answer = cls(
                choices=choices,
                prompt_tokens=int(fields["prompt_tokens"]),
                completion_tokens=int(fields["completion_tokens"]),
                estimated=bool(fields["estimated"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a kept answer: {error!r}") from error
        if not answer.choices:
            raise ValueError("not a kept answer: it has no choices")
        return answer


def _choice(fields: Mapping[str, Any]) -> Choice:
    logprobs = fields["logprobs"]
    return Choice(
        text=_text(fields["text"]),
        finish_reason=_text(fields["finish_reason"]),
        logprobs=None if logprobs is None else tuple(_checked(entry) for entry in logprobs),
        tool_calls=tuple(
            ToolCall(_text(one["id"]), _text(one["name"]), _text(one["arguments"]))
            for one in fields["tool_calls"]
        ),
        refusal=None if fields["refusal"] is None else _text(fields["refusal"]),
    )


def estimate_tokens(characters: int) -> int:
    """Tokens in a text of that length, rounded up."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


Length = int | Callable[[], int]
"""Tokens of a prompt, or what counts them when that is needed after all."""


def whole(completion: Completion, prompt_tokens: Length) -> Answer:
    """The answer in an OpenAI completion. Raises `EngineError` 502 when it is something else.

    `prompt_tokens` is believed only when the completion has no usage.
    """
    gathered = Gathering()
    try:
        gathered.read_usage(completion)
        for choice in completion["choices"]:
            gathered.take(choice, choice["text"] if "text" in choice else choice["message"])
        if not gathered.voices:
            raise ValueError("no choices")
        return gathered.answer(prompt_tokens)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise garbage() from error


def garbage() -> EngineError:
    """The error for an engine that speaks something else than OpenAI's protocol."""
    return EngineError(502, "the engine's reply is not an OpenAI completion", retryable=True)


@dataclass(slots=True)
class _Calling:
    """A tool call, as far as it has arrived."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Voice:
    """One choice, as far as it has arrived."""

    parts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    calls: dict[int, _Calling] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    has_logprobs: bool = False
    finish_reason: str | None = None
    chunks: int = 0

    def choice(self) -> Choice:
        """What has arrived."""
        return Choice(
            text="".join(self.parts),
            finish_reason=self.finish_reason or "stop",
            logprobs=tuple(self.entries) if self.has_logprobs else None,
            tool_calls=tuple(
                ToolCall(call.id, call.name, "".join(call.arguments))
                for _, call in sorted(self.calls.items())
            ),
            refusal="".join(self.refusals) or None,
        )

    @property
    def generated(self) -> int:
        """Tokens, counted by log-probabilities, else by chunks or length, whichever is more."""
        characters = sum(map(len, self.parts)) + sum(map(len, self.refusals))
        characters += sum(
            len(part) for call in self.calls.values() for part in (call.name, *call.arguments)
        )
        return len(self.entries) or max(self.chunks, estimate_tokens(characters))


@dataclass(slots=True)
class Gathering:
    """A streamed answer, as far as it has arrived."""

    expected: int = 1
    """How many choices were asked for."""
    voices: dict[int, _Voice] = field(default_factory=dict)
    usage: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in one chunk. Raises `EngineError` 502 when it is not one."""
        try:
            self.read_usage(chunk)
            for choice in chunk["choices"]:
                self.take(choice, choice["text"] if "text" in choice else choice["delta"])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise garbage() from error

    def take(self, choice: Mapping[str, Any], said: Any) -> None:
        """Take in one choice of a completion or a chunk, of which `said` is what it says.

        `said` is a text, or a message or delta. Raises `ValueError` and the like for others.
        """
        voice = self.voices.setdefault(_place(choice.get("index") or 0), _Voice())
        if isinstance(said, str) or said is None:
            said = {"content": said}
        arrived = False
        for key, into in (("content", voice.parts), ("refusal", voice.refusals)):
            if said.get(key):
                into.append(_text(said[key]))
                arrived = True
        for position, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index")
            place = _place(position if index is None else index)
            _add_call(voice.calls.setdefault(place, _Calling()), call)
            arrived = True
        voice.chunks += arrived
        entries = _entries(choice.get("logprobs"))
        if entries is not None:
            voice.entries += entries
            voice.has_logprobs = True
        if finish := choice.get("finish_reason"):
            voice.finish_reason = _text(finish)

    def read_usage(self, reply: Mapping[str, Any]) -> None:
        """Take the token counts from a completion or a chunk, if it has any."""
        usage = reply.get("usage")
        if usage:
            counts = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
            if min(counts) < 0 or max(counts) > _MOST_TOKENS:
                raise ValueError(f"{counts} are not token counts")
            self.usage = counts

    @property
    def parts(self) -> list[str]:
        """The pieces of text that have arrived, of all choices; calls count as pieces."""
        return [
            part
            for voice in self.voices.values()
            for part in (
                *voice.parts,
                *voice.refusals,
                *(call.name + "".join(call.arguments) for call in voice.calls.values()),
            )
        ]

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None while one of the expected ones has not."""
        ended = [voice.finish_reason for _, voice in sorted(self.voices.items())]
        return ended[0] if len(ended) >= self.expected and all(ended) else None

    @property
    def text(self) -> str:
        """Everything the first choice has said so far."""
        first = self.voices.get(0)
        return "".join(first.parts) if first else ""

    def answer(self, prompt_tokens: Length) -> Answer:
        """The answer so far.

        Without usage, as in an aborted stream, tokens are counted by log-probabilities, else by
        chunks or by length, whichever is more, and `prompt_tokens` is the caller's own count.
        """
        voices = [voice for _, voice in sorted(self.voices.items())] or [_Voice()]
        counted = self.usage
        if counted is None:
            own = prompt_tokens if isinstance(prompt_tokens, int) else prompt_tokens()
            counted = own, sum(voice.generated for voice in voices)
        return Answer(
            choices=tuple(voice.choice() for voice in voices),
            prompt_tokens=counted[0],
            completion_tokens=counted[1],
            estimated=self.usage is None,
        )


def _add_call(calling: _Calling, call: Mapping[str, Any]) -> None:
    function = call.get("function") or {}
    calling.id = calling.id or _text(call.get("id") or "")
    calling.name += _text(function.get("name") or "")
    if function.get("arguments"):
        calling.arguments.append(_text(function["arguments"]))


def _place(index: Any) -> int:
    if isinstance(index, int) and 0 <= index < _MOST_PARTS:
        return index
    raise ValueError(f"{index!r} is not the index of a choice or a call")


def _text(value: Any) -> str:
    """`value`, if it is a text that can be sent on."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    value.encode()
    return value


def _entries(logprobs: Any) -> list[Entry] | None:
    if not logprobs:
        return None
    if "tokens" in logprobs:
        return _from_columns(logprobs)
    content = logprobs.get("content")
    return None if content is None else [_checked(entry) for entry in content]


def _from_columns(logprobs: Mapping[str, Any]) -> list[Entry]:
    """The entries in the `tokens`, `token_logprobs`, `top_logprobs` of a text completion."""
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        {
            **_entry(token, value),
            "top_logprobs": [_entry(*pair) for pair in (top or {}).items()],
        }
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _entry(token: Any, value: Any) -> dict[str, Any]:
    return {"token": _text(token), "logprob": float(value), "bytes": list(_text(token).encode())}


def _checked(entry: Entry) -> Entry:
    _logprob(entry)
    _text(entry.get("token", ""))
    return entry


def _logprob(entry: Entry) -> float:
    return float(entry["logprob"])

"""The body of a chat request: size, JSON, fields. Nothing unknown is dropped silently.

chat = parse(b'{"model": "helpdesk", "messages": [...]}')    # ApiError 400 names the field
chat.engine_body()    # what an engine gets
chat.texts            # what a guard looks at; `chat.with_texts(...)` is the same request, redacted
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, to_json

from factory.gateway.engine import Route
from factory.gateway.errors import ApiError
from factory.gateway.fields import (
    NOT_FOR_THE_KEY,
    Generation,
    Metadata,
    Parser,
    StreamOptions,
    Strict,
    digest,
    lacking,
    never,
    schema_texts,
    with_schema_texts,
)
from factory.gateway.tools import (
    MOST_TOOLS,
    Identifier,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
)

__all__ = ["ChatRequest", "Message", "StreamOptions", "TextPart", "parse", "read"]


def _text_only(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise PydanticCustomError(
            "unsupported_content",
            "content of type '{kind}' is not supported: the models here read text only",
            {"kind": kind[:40]},
        )
    return kind


class TextPart(Strict):
    """A piece of text in a message."""

    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: str


def _by_role(schema: dict[str, Any]) -> None:
    """Say in the JSON schema of `Message` which fields go with which role."""
    fields = schema.pop("properties")
    said = {"anyOf": [one for one in fields["content"]["anyOf"] if one != {"type": "null"}]}

    def kind(roles: list[str], required: dict[str, Any], *optional: str) -> dict[str, Any]:
        named = {"role": {"enum": roles}, **required}
        return {
            "type": "object",
            "properties": {**named, **{name: fields[name] for name in optional}},
            "required": list(named),
            "additionalProperties": False,
        }

    calls = {"tool_calls": fields["tool_calls"]["anyOf"][0]}
    answers = {"content": said, "tool_call_id": fields["tool_call_id"]["anyOf"][0]}
    schema.clear()
    schema["anyOf"] = [
        kind(["system", "developer", "user"], {"content": said}, "name"),
        kind(["assistant"], {"content": said}, "name", "tool_calls", "refusal"),
        kind(["assistant"], calls, "content", "name", "refusal"),
        kind(["tool"], answers, "name"),
    ]


class Message(Strict):
    """One turn of the conversation."""

    model_config = ConfigDict(json_schema_extra=_by_role)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: Identifier | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MOST_TOOLS)] | None = None
    """What the assistant asked to be called."""
    tool_call_id: str | None = Field(default=None, min_length=1, max_length=256)
    """Which call a `tool` message answers."""
    refusal: str | None = None
    """What the assistant said instead of an answer."""

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        assistant_alone = bool(self.tool_calls) or self.refusal is not None
        if self.content is None and not (self.role == "assistant" and assistant_alone):
            raise lacking("content")
        if self.role != "assistant" and assistant_alone:
            raise ValueError("tool_calls and refusal belong to messages of the assistant")
        if self.role == "tool" and self.tool_call_id is None:
            raise lacking("tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError("tool_call_id goes with the role 'tool' only")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    @property
    def texts(self) -> Iterator[str]:
        """Each text in the message: content, refusal, arguments of calls."""
        if isinstance(self.content, str):
            yield self.content
        else:
            yield from (part.text for part in self.content or ())
        if self.refusal is not None:
            yield self.refusal
        for call in self.tool_calls or ():
            yield call.function.arguments

    def with_texts(self, texts: Iterator[str]) -> Message:
        """The message with its texts taken from `texts`, in the order of `Message.texts`."""
        content: str | list[TextPart] | None = self.content
        if isinstance(content, str):
            content = next(texts)
        elif content is not None:
            content = [part.model_copy(update={"text": next(texts)}) for part in content]
        refusal = None if self.refusal is None else next(texts)
        calls = self.tool_calls and [
            call.model_copy(
                update={"function": call.function.model_copy(update={"arguments": next(texts)})}
            )
            for call in self.tool_calls
        ]
        return self.model_copy(
            update={"content": content, "refusal": refusal, "tool_calls": calls},
        )


class ChatRequest(Generation):
    """OpenAI's `chat/completions` request, as far as text goes."""

    route: ClassVar[Route] = "chat"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    store: Annotated[
        Literal[False] | None, never("answers are not kept for retrieval here; leave it out")
    ] = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        self._check_tools()
        self._check_tool_messages()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if not names and (self.parallel_tool_calls is not None or self._calls_wanted):
            raise ValueError("tool_choice and parallel_tool_calls need tools")
        if isinstance(self.tool_choice, NamedTool):
            wanted = self.tool_choice.function.name
            if wanted not in names:
                raise ValueError(f"tool_choice names '{wanted}', which is not among the tools")

    def _check_tool_messages(self) -> None:
        asked: set[str] = set()
        for place, message in enumerate(self.messages):
            asked.update(call.id for call in message.tool_calls or ())
            if message.tool_call_id is not None and message.tool_call_id not in asked:
                raise ValueError(
                    f"messages[{place}]: no message before it has a tool call with the id "
                    f"'{message.tool_call_id[:64]}'"
                )

    @property
    def _calls_wanted(self) -> bool:
        return self.tool_choice not in (None, "none", "auto")

    @property
    def limit(self) -> int | None:
        """The most tokens the client wants to get, in each choice."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def shows_logprobs(self) -> bool:
        """Whether the client wants to see log-probabilities."""
        return bool(self.logprobs)

    @property
    def uses_tools(self) -> bool:
        """The model may or must call a tool, so its engine has to recognize calls."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema that the answer must satisfy; None when none was given."""
        asked = self.response_format and self.response_format.json_schema
        return asked.schema_ if asked else None

    @property
    def wants_json(self) -> bool:
        """The answer must be JSON, of whatever schema."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def turns(self) -> list[dict[str, str]]:
        """What the model reads, as plain `role` and `content`, to be counted and judged.

        Calls stand in the text of their message and tools in that of the system, as in most chat
        templates; `developer` is the newer name of `system`.
        """
        turns = [_turn(message) for message in self.messages]
        if self.tools:
            described = to_json(self.tools, exclude_none=True).decode()
            if turns[0]["role"] == "system":
                turns[0]["content"] += "\n" + described
            else:
                turns.insert(0, {"role": "system", "content": described})
        return turns

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that a model would read."""
        return tuple(self._texts())

    def _texts(self) -> Iterator[str]:
        for message in self.messages:
            yield from message.texts
        for tool in self.tools or ():
            if tool.function.description is not None:
                yield tool.function.description
            yield from schema_texts(tool.function.parameters)
        if self.response_format and (asked := self.response_format.json_schema):
            if asked.description is not None:
                yield asked.description
            yield from schema_texts(asked.schema_)

    def with_texts(self, texts: Sequence[str]) -> ChatRequest:
        """The same request with other texts, in the order of `texts`.

        Raises `ValueError` when there are more or fewer of them.
        """
        if len(texts) != len(self.texts):
            raise ValueError(f"the request has {len(self.texts)} texts, not {len(texts)}")
        rest = iter(texts)
        changed: dict[str, Any] = {
            "messages": [message.with_texts(rest) for message in self.messages]
        }
        if self.tools:
            changed["tools"] = [_tool_with_texts(tool, rest) for tool in self.tools]
        if self.response_format and (asked := self.response_format.json_schema):
            description = None if asked.description is None else next(rest)
            schema = with_schema_texts(asked.schema_, rest)
            asked = asked.model_copy(update={"description": description, "schema_": schema})
            changed["response_format"] = self.response_format.model_copy(
                update={"json_schema": asked}
            )
        return self.model_copy(update=changed)

    @property
    def last_question(self) -> str | None:
        """The text of the last message, when a user wrote it."""
        last = self.messages[-1]
        return last.text if last.role == "user" else None

    def context_hash(self) -> bytes:
        """16 bytes for everything but `last_question`.

        The model, all earlier messages, and every field that shapes the answer are part of it.
        """
        rest = self.model_dump_json(
            exclude=NOT_FOR_THE_KEY | {"messages"}, exclude_none=True, by_alias=True
        )
        last = self.messages[-1]
        before = list(self.messages[:-1])
        if last.role != "user":
            before.append(last)
        name = (last.name or "").encode() if last.role == "user" else b""
        earlier = to_json([message.model_dump(exclude_none=True) for message in before])
        return digest(b"chat", rest.encode(), b"%d" % self.choices, name, earlier)


def _turn(message: Message) -> dict[str, str]:
    text = message.text or message.refusal or ""
    if message.tool_calls:
        text += to_json(message.tool_calls).decode()
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text}


def _tool_with_texts(tool: Tool, texts: Iterator[str]) -> Tool:
    function = tool.function
    description = None if function.description is None else next(texts)
    parameters = with_schema_texts(function.parameters, texts)
    function = function.model_copy(update={"description": description, "parameters": parameters})
    return tool.model_copy(update={"function": function})


_PARSER = Parser(ChatRequest)


def parse(raw: bytes) -> ChatRequest:
    """The checked request. Raises `ApiError` 400 that names the position or the field."""
    return _PARSER.parse(raw)


async def read(chunks: AsyncIterable[bytes], declared: str | None, limit: int) -> bytes:
    """The whole body. Raises `ApiError` 413 as soon as it is known to exceed `limit` bytes."""
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"the request body is larger than {limit} bytes (gateway.max_body_bytes); shorten it",
    )

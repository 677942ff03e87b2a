"""The request body: size, JSON, fields. Nothing unknown is dropped silently.

chat = parse(b'{"model": "helpdesk", "messages": [...]}')    # ApiError 400 names the field
chat.engine_body()    # what an engine gets
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from factory.gateway.engine import Body
from factory.gateway.errors import ApiError

_NOT_FOR_THE_KEY = {"stream", "stream_options", "user", "n"}
_NOT_FOR_ENGINES = {"model", "stream", "stream_options", "user", "n"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(default=None, max_length=64)

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The supported part of OpenAI's `chat/completions` request."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: Literal[1] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    user: str | None = Field(default=None, max_length=512)

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens the client wants to get."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def repeatable(self) -> bool:
        """False when the client asks for a different answer each time: sampling without a seed."""
        return not self.temperature or self.seed is not None

    def canonical(self) -> bytes:
        """The same bytes for every request that means the same; streaming does not matter."""
        return self.model_dump_json(exclude=_NOT_FOR_THE_KEY, exclude_none=True).encode()

    def engine_body(self) -> Body:
        """The fields an engine gets, without those the gateway answers for."""
        return self.model_dump(exclude=_NOT_FOR_ENGINES, exclude_none=True)


_VALIDATOR: TypeAdapter[ChatRequest] = TypeAdapter(ChatRequest)


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


def parse(raw: bytes) -> ChatRequest:
    """The checked request. Raises `ApiError` 400 that names the position or the field."""
    try:
        return _VALIDATOR.validate_json(raw)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_input=False)
    # Where a field may be one of several types, the error that is not about the type tells more.
    telling = [p for p in problems if not p["type"].endswith("_type")] or problems
    first = next((p for p in telling if p["type"] == "extra_forbidden"), telling[0])
    where = _path(first["loc"])
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, "invalid_json", f"the request body is not valid JSON: {reason}")
    if first["type"] == "extra_forbidden":
        message = f"the field '{where}' is not supported here; remove it"
        return ApiError(400, "unsupported_parameter", message, param=where)
    if first["type"] == "missing":
        message = f"the required field '{where}' is missing"
        return ApiError(400, "missing_required_parameter", message, param=where)
    reason = first["msg"].removeprefix("Value error, ")
    message = f"{where}: {reason}" if where else reason
    return ApiError(400, "invalid_value", message, param=where or None)


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's path, without its names of union members."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in _FIELDS or not _is_union_tag(part):
            text += f".{part}" if text else part
    return text


_FIELDS = {*ChatRequest.model_fields, *Message.model_fields, *TextPart.model_fields}


def _is_union_tag(part: Any) -> bool:
    return part in ("str", "list[str]", "list[TextPart]") or "constrained" in str(part)

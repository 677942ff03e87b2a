"""What the request bodies of all routes share: strictness, sampling, errors that name a field.

class CompletionRequest(Generation): ...      # adds its own fields
Parser(CompletionRequest).parse(raw)          # ApiError 400 names the field
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from factory.gateway.engine import Body
from factory.gateway.errors import ApiError

MOST_CHOICES = 8
"""Largest `n`."""

NOT_FOR_THE_KEY = {"stream", "stream_options", "user", "n", "metadata", "store"}
NOT_FOR_ENGINES = {"model", "stream", "stream_options", "user", "n", "metadata", "store"}

_UNSUPPORTED = "unsupported_"
"""How the error types begin that this package raises for what it knows and does not do."""

LACKING = "lacking_field"
"""Error type for a field that is required beside another; its context names it."""

_NOT_TEXT = frozenset({"type", "$ref", "$schema", "$id", "$anchor", "format", "pattern"})
"""Keys of a JSON schema whose strings are not for a reader."""


class Strict(BaseModel):
    """A part of a request: frozen, exact types, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False


def never(why: str) -> BeforeValidator:
    """Refuses every value but null and false, and says `why`."""

    def check(value: Any) -> Any:
        if value is None or value is False:
            return value
        raise PydanticCustomError("unsupported_value", "{why}", {"why": why})

    return BeforeValidator(check)


def lacking(field: str) -> PydanticCustomError:
    """The error of a part of a request that needs `field` because of its other fields."""
    return PydanticCustomError(LACKING, "the field is required here", {"field": f".{field}"})


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]
TokenBias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1)]


class Generation(Strict):
    """The fields that chat and text completions have in common."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], TokenBias],
            Field(max_length=1024),
        ]
        | None
    ) = None
    user: str | None = Field(default=None, max_length=512)

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def repeatable(self) -> bool:
        """False when the client asks for a different answer each time: sampling without a seed."""
        return not self.temperature or self.seed is not None

    def canonical(self) -> bytes:
        """The same bytes for every request that means the same; streaming does not matter."""
        text = self.model_dump_json(exclude=NOT_FOR_THE_KEY, exclude_none=True, by_alias=True)
        return f"{text}n={self.choices}".encode()

    def engine_body(self) -> Body:
        """The fields an engine gets, without those the gateway answers for."""
        body = self.model_dump(exclude=NOT_FOR_ENGINES, exclude_none=True, by_alias=True)
        if self.choices > 1:
            body["n"] = self.choices
        return body


def digest(*parts: bytes) -> bytes:
    """16 bytes that differ when any of the parts does."""
    mark = hashlib.blake2b(digest_size=16)
    for part in parts:
        mark.update(b"%d:" % len(part) + part)
    return mark.digest()


def schema_texts(node: Any) -> Iterator[str]:
    """The strings in a JSON schema that a model reads as text: descriptions, enums, examples."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from schema_texts(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if not _is_structure(key, value):
                yield from schema_texts(value)


def with_schema_texts(node: Any, texts: Iterator[str]) -> Any:
    """`node` with the strings of `schema_texts` replaced, in the same order."""
    if isinstance(node, str):
        return next(texts)
    if isinstance(node, list):
        return [with_schema_texts(item, texts) for item in node]
    if isinstance(node, dict):
        return {
            key: value if _is_structure(key, value) else with_schema_texts(value, texts)
            for key, value in node.items()
        }
    return node


def _is_structure(key: str, value: Any) -> bool:
    return (key in _NOT_TEXT and not isinstance(value, dict)) or key == "required"


_Request = TypeVar("_Request", bound=BaseModel)


class Parser(Generic[_Request]):
    """Reads one kind of request, or says which field is wrong."""

    def __init__(self, request: type[_Request]) -> None:
        self._validator: TypeAdapter[_Request] = TypeAdapter(request)

    def parse(self, raw: bytes) -> _Request:
        """The checked request. Raises `ApiError` 400 that names the position or the field."""
        try:
            return self._validator.validate_json(raw)
        except ValidationError as error:
            raise explain(error) from None


def explain(error: ValidationError) -> ApiError:
    """The problem that tells the client most, as a 400."""
    problems = error.errors(include_url=False, include_input=False)
    # Where a field may be one of several types, the error that is not about the type tells more.
    telling = [p for p in problems if not p["type"].endswith("_type")] or problems
    first = _first(telling, lambda kind: kind.startswith(_UNSUPPORTED))
    first = first or _first(telling, lambda kind: kind == "extra_forbidden") or telling[0]
    kind = first["type"]
    where = _path(first["loc"], keep_last=kind == "extra_forbidden")
    if kind == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, "invalid_json", f"the request body is not valid JSON: {reason}")
    if kind == "extra_forbidden":
        message = f"the field '{where}' is not supported here; remove it"
        return ApiError(400, "unsupported_parameter", message, param=where)
    if kind in ("missing", LACKING):
        where += first["ctx"]["field"] if kind == LACKING else ""
        message = f"the required field '{where}' is missing"
        return ApiError(400, "missing_required_parameter", message, param=where)
    reason = first["msg"].removeprefix("Value error, ")
    code = kind if kind.startswith(_UNSUPPORTED) else "invalid_value"
    message = f"{where}: {reason}" if where else reason
    return ApiError(400, code, message, param=where or None)


def _first(problems: Iterable[Any], wanted: Callable[[str], bool]) -> Any:
    return next((problem for problem in problems if wanted(problem["type"])), None)


def _path(loc: tuple[int | str, ...], keep_last: bool) -> str:
    """`messages[0].content` from pydantic's path, without its names of union members."""
    text = ""
    for place, part in enumerate(loc):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not _is_union_tag(part) or (keep_last and place == len(loc) - 1):
            text += f".{part}" if text else part
    return text


def _is_union_tag(part: str) -> bool:
    """Pydantic writes the member of a union that it tried as a class name or a type expression;
    fields of requests are in lower case."""
    return part[:1].isupper() or "[" in part or "constrained" in part or part in ("str", "none")

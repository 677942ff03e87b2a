"""Tools and answer formats in a chat request: what a model may call, and how it must answer.

Tool.model_validate({"type": "function", "function": {"name": "look_up", "parameters": {...}}})
ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "a", "schema": {}}})
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import from_json, to_json

from factory.gateway.fields import Strict

MOST_TOOLS = 128
"""Tools in a request, and calls in an answer."""

MOST_NESTED = 64
"""Levels of JSON in a schema; OpenAI allows ten levels of objects, which are about half as many."""

MOST_SCHEMA_BYTES = 20_000
"""Size of the schema of an answer, which is checked while other requests wait."""

_REFERENCES = ("$ref", "$dynamicRef")

Identifier = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, unless somebody who validates by it would have to fetch something, or recurse."""
    level: list[Any] = [schema]
    for _ in range(MOST_NESTED):
        if not level:
            return schema
        for node in level:
            for key in _REFERENCES:
                target = node.get(key) if isinstance(node, dict) else None
                if isinstance(target, str) and not target.startswith("#"):
                    raise ValueError(
                        f"the reference '{target[:80]}' leaves the schema; only references that "
                        "begin with '#' are followed"
                    )
        level = [child for node in level for child in _children(node)]
    raise ValueError(f"nested deeper than {MOST_NESTED} levels")


def _children(node: Any) -> list[Any]:
    inner = node.values() if isinstance(node, dict) else node
    return [child for child in inner if isinstance(child, dict | list)]


def _sound(schema: dict[str, Any]) -> dict[str, Any]:
    text = to_json(schema)
    if len(text) > MOST_SCHEMA_BYTES:
        raise ValueError(f"a schema of more than {MOST_SCHEMA_BYTES} bytes is not taken")
    if problem := _problem(text):
        raise ValueError(f"not a JSON schema: {problem}")
    return schema


@lru_cache(maxsize=256)
def _problem(schema: bytes) -> str:
    """Why it is not a schema. Remembered, since clients send the same few again and again."""
    try:
        Draft202012Validator.check_schema(from_json(schema))
    except SchemaError as error:
        return str(error.message)[:200]
    return ""


Parameters = Annotated[dict[str, Any], AfterValidator(_closed)]
"""A JSON schema that refers to nothing outside itself; its engine checks the rest."""

AnswerSchema = Annotated[Parameters, AfterValidator(_sound)]
"""A JSON schema (draft 2020-12) that is one."""


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: Identifier
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Strict):
    """The name of a function."""

    name: Identifier


class NamedTool(Strict):
    """The tool that the model must call."""

    type: Literal["function"]
    function: FunctionName


class FunctionCall(Strict):
    """A function and its arguments, as a model wrote them."""

    name: Identifier
    arguments: str
    """Meant to be a JSON object; a model may have got it wrong."""


class ToolCall(Strict):
    """A call in an earlier answer of the assistant."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: FunctionCall


class JsonSchema(Strict):
    """The schema that the answer must satisfy."""

    name: Identifier
    description: str | None = None
    schema_: AnswerSchema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Plain text, any JSON object, or JSON of a given schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type 'json_schema', and only with it")
        return self

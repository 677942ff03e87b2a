"""JSON schemas that a request asks its answer to fit: checked before, held to afterwards.

    check_schema(schema)                  # None, or why it is refused
    JsonSchema().check(answer, schema)    # empty when the answer fits

Draft 2020-12; `format` is an annotation and is not checked. Schema and answer both come from
outside, so nothing is fetched, patterns run in RE2, and checking stops after a number of steps:
references that branch could otherwise take 2**depth of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from jsonschema import (
    Draft202012Validator,
    SchemaError,
    ValidationError,
    validators,
)
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from factory.gateway.guard.findings import Span
from factory.gateway.guard.patterns import compiled

# Characters and enum values are bounded as in OpenAI's structured outputs.
MAX_CHARACTERS = 120_000
MAX_ENUM_VALUES = 1_000
MAX_NODES = 10_000
MAX_DEPTH = 64
MAX_STEPS = 100_000
"""Keywords applied to values of one answer, about a second's work."""

_LABEL = "INVALID_JSON"
_steps: ContextVar[int] = ContextVar("steps")


class _TooCostly(Exception):
    """Checking took `MAX_STEPS` steps."""


class JsonSchema:
    """Holds an answer to the schema its request asked for."""

    labels = frozenset({_LABEL})

    def check(self, text: str, schema: Mapping[str, Any] | None) -> list[tuple[int, Span]]:
        """Why `text` does not fit, as one span of the whole of it; empty when it does."""
        problem = None if schema is None else misfit(text, schema)
        return [] if problem is None else [(0, Span(_LABEL, 0, len(text), 1.0, problem))]


def check_schema(schema: Any) -> str | None:
    """Why `schema` is refused, or None. Equal schemas are judged once."""
    if not isinstance(schema, dict):
        return "the schema must be a JSON object"
    try:
        text = json.dumps(schema, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return f"the schema must be JSON of at most {MAX_DEPTH} levels"
    if len(text) > MAX_CHARACTERS:
        return f"the schema has {len(text)} characters; at most {MAX_CHARACTERS} are accepted"
    return _judged(text)


def misfit(text: str, schema: Mapping[str, Any]) -> str | None:
    """Why `text` is not JSON that fits `schema`, or None. Quotes the schema, never the text."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError):
        return "not JSON: nested too deeply, or a number that JSON does not have"
    token = _steps.set(MAX_STEPS)
    try:
        unfit = next(_Validator(schema, registry=Registry()).iter_errors(value), None)
    except (_TooCostly, RecursionError):
        return f"checking it against the schema takes more than {MAX_STEPS} steps"
    except Unresolvable:
        return "a $ref of the schema does not resolve"
    except ValueError as problem:
        return f"the schema cannot be used: {problem}"
    finally:
        _steps.reset(token)
    if unfit is None:
        return None
    return f"does not fit the schema at {_pointer(unfit.absolute_schema_path)}"


@lru_cache(maxsize=64)
def _judged(text: str) -> str | None:
    schema = json.loads(text)
    problem = _bounded(schema)
    if problem is not None:
        return problem
    token = _steps.set(MAX_STEPS)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"not a JSON schema (draft 2020-12): see {_pointer(error.absolute_path)}"
    except RecursionError:
        return f"the schema must be JSON of at most {MAX_DEPTH} levels"
    finally:
        _steps.reset(token)
    return _unsafe(schema)


def _bounded(schema: dict[str, Any]) -> str | None:
    nodes = enum_values = 0
    layer: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        nodes += len(layer)
        for node in layer:
            if isinstance(node, dict) and isinstance(node.get("enum"), list):
                enum_values += len(node["enum"])
        if nodes > MAX_NODES:
            return f"the schema has more than {MAX_NODES} parts"
        if enum_values > MAX_ENUM_VALUES:
            return f"the schema has more than {MAX_ENUM_VALUES} enum values"
        layer = [child for node in layer for child in _children(node)]
        if not layer:
            return None
    return f"the schema must be JSON of at most {MAX_DEPTH} levels"


def _unsafe(schema: dict[str, Any]) -> str | None:
    """Remote or missing references, patterns that are not linear, and what needs both."""
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    keywords = {key for node in _nodes(schema) if isinstance(node, dict) for key in node}
    if {"patternProperties", "unevaluatedProperties"} <= keywords:
        return "patternProperties and unevaluatedProperties cannot be used together"
    for node in _nodes(schema):
        if not isinstance(node, dict):
            continue
        for keyword in ("$ref", "$dynamicRef"):
            target = node.get(keyword)
            if not isinstance(target, str):
                continue
            if not target.startswith("#"):
                return f"{keyword} '{target[:80]}' is outside of the schema; nothing is fetched"
            try:
                resolver.lookup(target)
            except (Unresolvable, ValueError, KeyError, TypeError):
                return f"{keyword} '{target[:80]}' does not resolve"
        patterns = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
        if isinstance(node.get("patternProperties"), dict):
            patterns += node["patternProperties"]
        for pattern in patterns:
            try:
                compiled(pattern)
            except ValueError as error:
                return str(error)
    return None


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _nodes(schema: Any) -> Iterator[Any]:
    stack = [schema]
    while stack:
        node = stack.pop()
        yield node
        stack += _children(node)


def _pointer(path: Any) -> str:
    return "#/" + "/".join(str(part) for part in path)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _spend(steps: int) -> None:
    left = _steps.get() - steps
    _steps.set(left)
    if left < 0:
        raise _TooCostly


_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def _counted(keyword: _Keyword) -> _Keyword:
    def run(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend(1 + (len(value) if isinstance(value, list | dict) else 0))
        yield from keyword(validator, value, instance, schema) or ()

    return run


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and compiled(pattern).search(value) is None:
        yield ValidationError("pattern")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, subschema in patterns.items():
        search = compiled(pattern).search
        for key, item in value.items():
            if search(key) is not None:
                yield from validator.descend(item, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    named = schema.get("properties", {})
    patterns = [compiled(pattern) for pattern in schema.get("patternProperties", {})]
    for key, item in value.items():
        if key in named or any(pattern.search(key) is not None for pattern in patterns):
            continue
        if additional is False:
            yield ValidationError("additionalProperties")
        else:
            yield from validator.descend(item, additional, path=key)


def _unique_items(_: Any, unique: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if unique and isinstance(value, list):
        keys = {json.dumps(_canonical(item), sort_keys=True) for item in value}
        if len(keys) < len(value):
            yield ValidationError("uniqueItems")


def _canonical(value: Any) -> Any:
    """`value` with `1.0` as `1`, since JSON Schema holds them equal."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value


_Validator: Any = validators.extend(
    Draft202012Validator,
    {
        name: _counted(keyword)
        for name, keyword in {
            **Draft202012Validator.VALIDATORS,
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            "uniqueItems": _unique_items,
        }.items()
    },
)

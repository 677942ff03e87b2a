"""JSON schemas from outside: what is refused, what an answer must fit, and that it ends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from factory.gateway.guard import check_schema
from factory.gateway.guard.json_schema import MAX_CHARACTERS, MAX_DEPTH, misfit

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        "friend": {"$ref": "#"},
    },
    "required": ["name"],
    "additionalProperties": False,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", "A", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "age", "tags", "friend", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(VALUES)
def test_an_answer_fits_exactly_when_the_library_says_so(value):
    fits = Draft202012Validator(PERSON).is_valid(value)
    assert (misfit(json.dumps(value), PERSON) is None) == fits


@given(
    VALUES,
    st.sampled_from(
        [
            {"patternProperties": {"^a|x": {"type": "integer"}}, "additionalProperties": False},
            {"patternProperties": {"^n": True}, "additionalProperties": {"type": "string"}},
            {"uniqueItems": True, "items": {"type": ["array", "integer", "boolean"]}},
            {"unevaluatedProperties": False, "anyOf": [{"properties": {"age": True}}, True]},
            {"contains": {"const": "a"}, "minItems": 1, "maxItems": 2},
        ]
    ),
)
def test_keywords_made_safe_mean_the_same(value, schema):
    fits = Draft202012Validator(schema).is_valid(value)
    assert (misfit(json.dumps(value), schema) is None) == fits


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("not json", "not JSON"),
        ('```json\n{"name": "Kim"}\n```', "not JSON"),
        ('{"name": "Kim"} and more', "not JSON"),
        ('{"name": NaN}', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"age": 3}', "#/required"),
        ('{"name": "kim"}', "#/properties/name/pattern"),
        ('{"name": "Kim", "age": -1}', "#/properties/age/minimum"),
        ('{"name": "Kim", "secret-key": 1}', "#/additionalProperties"),
    ],
)
def test_why_an_answer_does_not_fit(answer, problem):
    reason = misfit(answer, PERSON)
    assert reason is not None
    assert problem in reason
    assert "secret-key" not in reason


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ([], "must be a JSON object"),
        ({"type": "strnig"}, "not a JSON schema"),
        ({"properties": {"a": {"minimum": "3"}}}, "not a JSON schema"),
        ({"$ref": "https://example.org/schema.json"}, "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"properties": {"a": {"$dynamicRef": "other.json#x"}}}, "nothing is fetched"),
        ({"$ref": "#/$defs/missing"}, "does not resolve"),
        ({"pattern": "(?=a)b"}, "RE2"),
        ({"patternProperties": {"(a)\\1": True}}, "RE2"),
        ({"patternProperties": {"a": True}, "unevaluatedProperties": False}, "together"),
        ({"description": "x" * MAX_CHARACTERS}, "characters"),
        ({"enum": list(range(2_000))}, "enum"),
        ({"allOf": [{"title": "x"}] * 6_000}, "parts"),
        (nested(MAX_DEPTH), "levels"),
        (nested(5_000), "levels"),
    ],
)
def test_what_is_refused(schema, problem):
    reason = check_schema(schema)
    assert reason is not None
    assert problem in reason


@pytest.mark.parametrize(
    "schema", [{}, PERSON, {"type": "object"}, nested(20), {"format": "email", "x-own": 1}]
)
def test_what_is_accepted(schema):
    assert check_schema(schema) is None


def test_a_format_is_an_annotation():
    assert misfit('"nobody"', {"type": "string", "format": "email"}) is None


DOUBLING = {
    "$defs": {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(40)
    }
    | {"d40": {"type": "object"}},
    "$ref": "#/$defs/d0",
}
TWICE = {"$ref": "#/$defs/t", "$defs": {"t": {"allOf": [{"properties": {"a": {"$ref": "#"}}}] * 2}}}


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        (DOUBLING, "{}"),
        (TWICE, '{"a":' * 40 + "1" + "}" * 40),
        ({"$ref": "#"}, "{}"),
        ({"allOf": [{"$ref": "#"}]}, "{}"),
        ({"items": {"enum": [*range(998), "x"]}}, json.dumps(["x"] * 5_000)),
    ],
)
def test_checking_ends(schema, answer):
    reason = misfit(answer, schema)
    assert reason is not None
    assert "steps" in reason


def test_unique_items_and_patterns_are_quick_on_hostile_answers():
    assert misfit(json.dumps([{"a": i} for i in range(20_000)]), {"uniqueItems": True}) is None
    assert misfit(json.dumps("a" * 50_000 + "!"), {"pattern": "^(a+)+$"}) is not None

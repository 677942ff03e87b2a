"""`guard`: what is looked for in requests and answers, and what happens when it is found."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import re2
from pydantic import Field, field_validator

from factory.config.section import Section

Act = Literal["allow", "redact", "reject", "review", "onprem"]
"""Let it pass with a note, replace what was found, refuse, ask a person, or never let the request
leave the cluster."""


class _Filter(Section):
    act: Act
    """What happens when something is found."""


class ShapeFilter(_Filter):
    """More messages, longer texts or longer words than expected, and control characters."""

    filter: Literal["shape"]
    """`shape`."""
    act: Literal["allow", "reject", "review", "onprem"] = "reject"
    """What happens when something is found."""
    max_messages: int = Field(default=200, ge=1)
    """Messages in a conversation."""
    max_characters: int = Field(default=200_000, ge=1)
    """Characters in all messages together."""
    max_word_characters: int = Field(default=10_000, ge=1)
    """Characters without white space in between."""
    control_characters: bool = True
    """Control, bidirectional-override and tag characters count as findings."""


class SecretsFilter(_Filter):
    """Passwords, tokens and private keys."""

    filter: Literal["secrets"]
    """`secrets`."""
    act: Act = "redact"
    """What happens when something is found."""


class PersonalDataFilter(_Filter):
    """Personal data, by Presidio's recognizers."""

    filter: Literal["personal_data"]
    """`personal_data`."""
    act: Act = "redact"
    """What happens when something is found."""
    entities: tuple[str, ...] = (
        "CREDIT_CARD",
        "EMAIL_ADDRESS",
        "IBAN_CODE",
        "PHONE_NUMBER",
        "US_SSN",
    )
    """Presidio's entity names."""
    threshold: float = Field(default=0.4, ge=0, le=1)
    """Lowest score of a recognizer that counts."""


class PromptInjectionFilter(_Filter):
    """Signals that a text tries to take over the model's instructions or to lift its limits."""

    filter: Literal["prompt_injection"]
    """`prompt_injection`."""
    act: Literal["allow", "reject", "review", "onprem"] = "review"
    """What happens when something is found."""
    threshold: float = Field(default=0.7, ge=0, le=1)
    """Lowest score that counts."""


class BannedFilter(_Filter):
    """Content that this team does not want, by regular expressions."""

    filter: Literal["banned"]
    """`banned`."""
    act: Act = "reject"
    """What happens when something is found."""
    patterns: tuple[str, ...] = Field(min_length=1)
    """Regular expressions of RE2, which take linear time on any text: no look-around and no
    backreferences; `\\b`, `\\w` and `\\d` know only ASCII, `\\pL` and `\\pN` all scripts."""

    @field_validator("patterns")
    @classmethod
    def _linear(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return linear(value)


class JsonSchemaFilter(_Filter):
    """An answer that does not fit the JSON schema its request asked for."""

    filter: Literal["json_schema"]
    """`json_schema`; for answers only."""
    act: Literal["allow", "reject", "review"] = "reject"
    """What happens when something is found; before that, a higher tier is asked."""


Filter = Annotated[
    ShapeFilter
    | SecretsFilter
    | PersonalDataFilter
    | PromptInjectionFilter
    | BannedFilter
    | JsonSchemaFilter,
    Field(discriminator="filter"),
]


class Guard(Section):
    """Filters in the order in which they look."""

    input: tuple[Filter, ...] = (
        ShapeFilter(filter="shape"),
        SecretsFilter(filter="secrets"),
    )
    """Look at requests before anything else does."""
    output: tuple[Filter, ...] = (
        SecretsFilter(filter="secrets"),
        JsonSchemaFilter(filter="json_schema"),
    )
    """Look at answers before they are sent."""

    @field_validator("input")
    @classmethod
    def _no_schema(cls, value: tuple[Filter, ...]) -> tuple[Filter, ...]:
        if any(one.filter == "json_schema" for one in value):
            raise ValueError("json_schema looks at answers; move it to guard.output")
        return value

    @field_validator("output")
    @classmethod
    def _already_answered(cls, value: tuple[Filter, ...]) -> tuple[Filter, ...]:
        if any(one.act == "onprem" for one in value):
            raise ValueError("the act onprem is for requests; use it in guard.input")
        return value


def compiling(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """`patterns`, if all of them are regular expressions. Raises `ValueError`."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
    return patterns


def linear(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """`patterns`, if RE2 compiles all of them. Raises `ValueError`."""
    options = re2.Options()
    options.log_errors = False
    for pattern in patterns:
        if not pattern.isascii() and re.search(r"\\[bBwW]", pattern):
            raise ValueError(
                f"'{pattern}': beside letters that are not ASCII, \\b and \\w do not work as "
                r"meant; write (?:^|\PL) and \pL"
            )
        try:
            re2.compile(pattern, options)
        except re2.error as error:
            problem = error.args[0].decode() if error.args else "unknown"
            raise ValueError(
                f"'{pattern}' is not a regular expression of RE2 (no look-around, no "
                f"backreferences): {problem}"
            ) from error
    return patterns

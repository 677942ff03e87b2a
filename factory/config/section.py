"""What every section of `factory.yaml` is made of: frozen, typed, unknown keys are errors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NANO = 1_000_000_000
"""Nano-dollars in a US dollar: the unit of every amount of money in the product."""

Tier = Annotated[int, Field(ge=0, le=3)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)]


class ConfigError(Exception):
    """A configuration that cannot be used; the message says what, where, and what to do."""


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

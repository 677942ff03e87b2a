"""Unlabelled prompts: conversations that wait for an answer, one JSON object a line.

    chats = read_prompts(folder / "prompts.jsonl")       # a teacher answers them

A line is `{"messages": [...], "id": ...}`; the last turn is the user's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from factory.training.dataset import DatasetError, Example, Turn

FILE = "prompts.jsonl"


class Prompt(BaseModel):
    """One conversation without its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    messages: tuple[Turn, ...] = Field(min_length=1)
    """The conversation; the last turn is the user's."""
    id: str = ""
    """Unique name; the line number where the file gives none."""

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, value: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if value[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return value

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as plain dictionaries, as chat templates take them."""
        return [turn.model_dump() for turn in self.messages]

    def answered(self, text: str, label: str | None) -> Example:
        """The example that this prompt and a model's answer make, marked as synthetic."""
        said = (*self.messages, Turn(role="assistant", content=text))
        name = f"taught:{self.id}"
        return Example(messages=said, id=name, group=name, label=label, synthetic=True)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of one file, or of the `prompts.jsonl` of a folder, in file order.

    Raises `DatasetError` naming the file and line.
    """
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the prompts '{path}': {error}") from error
    prompts, names = [], set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = Prompt.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {number}: not valid JSON: {error}") from error
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(str(part) for part in item["loc"]) or "the row"
            what = item["msg"].removeprefix("Value error, ")
            raise DatasetError(f"{path}, line {number}: {where}: {what}") from error
        name = prompt.id or f"line {number}"
        if name in names:
            raise DatasetError(f"{path}, line {number}: id '{name}' is used twice")
        names.add(name)
        prompts.append(prompt.model_copy(update={"id": name}))
    if not prompts:
        raise DatasetError(f"the file '{path}' has no prompts; write at least one line")
    return prompts


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Hex sha256 over the content."""
    rows = [json.dumps(item.model_dump(), sort_keys=True) for item in prompts]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()

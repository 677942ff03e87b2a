"""A data set of conversations: three JSON Lines files and a card.

    examples = read_messages(folder / "train.jsonl")
    split = split_by_group(examples, seed=7)
    write(folder, split, card(split, ...))

One line is `{"messages": [{"role": ..., "content": ...}, ...], "id": ..., "group": ...,
"label": ...}`; only `messages` is required and its last turn is the assistant's. Examples of one
group never land in different splits.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

SPLITS = ("train", "validation", "test")
CARD = "card.json"

Split = Mapping[str, Sequence["Example"]]
"""Examples by the name of their split."""


class DatasetError(Exception):
    """A data set that cannot be used; the message says what, where, and what to do."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Turn(_Row):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str = Field(min_length=1)
    """What is said."""


class Example(_Row):
    """One conversation whose assistant turns are learned."""

    messages: tuple[Turn, ...] = Field(min_length=2)
    """The conversation; the last turn is the assistant's."""
    id: str = ""
    """Unique name; the line number where the file gives none."""
    group: str = ""
    """Examples of one group stay in one split; empty means a group of its own."""
    label: str | None = None
    """The exact answer, where the task has a closed set of answers."""
    synthetic: bool | None = None
    """True where a model wrote the question or the answer; absent otherwise."""

    @field_validator("messages")
    @classmethod
    def _ends_with_assistant(cls, value: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if value[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's")
        return value

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as plain dictionaries, as chat templates take them."""
        return [turn.model_dump() for turn in self.messages]


def read_messages(path: Path) -> list[Example]:
    """The examples of one JSON Lines file, in file order.

    Raises `DatasetError` naming the file and line for anything that does not fit, for a file
    that is missing, and for a file without a single example.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the data file '{path}': {error}") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            example = Example.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {number}: not valid JSON: {error}") from error
        except ValidationError as error:
            raise DatasetError(f"{path}, line {number}: {first_of(error)}") from error
        name = example.id or f"line {number}"
        examples.append(example.model_copy(update={"id": name, "group": example.group or name}))
    if not examples:
        raise DatasetError(f"the data file '{path}' has no examples; write at least one line")
    return examples


def read(folder: Path, splits: Iterable[str] = SPLITS) -> dict[str, list[Example]]:
    """The named splits of a data set folder. Raises `DatasetError`."""
    return {name: read_messages(folder / f"{name}.jsonl") for name in splits}


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a data set folder, empty where there is none. Raises `DatasetError`."""
    path = folder / CARD
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the card '{path}': {error}") from error
    if not isinstance(card, dict):
        raise DatasetError(f"the card '{path}' must be a JSON object")
    return card


def write(folder: Path, split: Split, card: Mapping[str, Any]) -> None:
    """Write one file a split and `card.json` into `folder`; the caller makes that atomic."""
    for name, examples in split.items():
        (folder / f"{name}.jsonl").write_text("".join(map(_line, examples)), "utf-8")
    text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", "utf-8")


def dataset_hash(split: Split) -> str:
    """Hex sha256 over the content of all splits: the same examples, the same hash."""
    digest = hashlib.sha256()
    for name in sorted(split):
        digest.update(f"{name}\n".encode())
        for example in split[name]:
            digest.update(_line(example).encode())
    return digest.hexdigest()


def card(split: Split, **facts: Any) -> dict[str, Any]:
    """What a data set says about itself: its hash, counts by split and label, and `facts`."""
    counts = {name: Counter(item.label for item in split[name] if item.label) for name in split}
    labels = sorted(set().union(*counts.values()))
    generated = {name: sum(bool(item.synthetic) for item in split[name]) for name in split}
    return {
        **facts,
        **({"synthetic": generated} if any(generated.values()) else {}),
        "hash": dataset_hash(split),
        "counts": {name: len(split[name]) for name in split},
        "labels": {label: {name: counts[name][label] for name in split} for label in labels},
    }


def split_by_group(
    examples: Sequence[Example], seed: int, test: float = 0.2, validation: float = 0.1
) -> dict[str, list[Example]]:
    """Train, validation and test, group by group within each label.

    Groups are drawn in a seeded order until a split holds its share of the label; a group that
    would take a split well over its share stays in train. Raises `DatasetError` for a label with
    fewer than three groups, since then some split would never see it.
    """
    by_label: dict[str, dict[str, list[Example]]] = {}
    for example in examples:
        groups = by_label.setdefault(example.label or "", {})
        groups.setdefault(example.group, []).append(example)
    result: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for label, groups in sorted(by_label.items()):
        if len(groups) < len(SPLITS):
            raise DatasetError(
                f"label '{label}' has {len(groups)} groups of examples; it needs at least three, "
                "one each for train, validation and test"
            )
        order = sorted(groups)
        random.Random(f"{seed}:{label}").shuffle(order)
        total = sum(len(group) for group in groups.values())
        for name, share in (("test", test), ("validation", validation)):
            for key in _take(order, groups, share * total):
                order.remove(key)
                result[name] += groups[key]
        for key in order:
            result["train"] += groups[key]
    for name in SPLITS:
        result[name].sort(key=lambda item: item.id)
        random.Random(f"{seed}:{name}").shuffle(result[name])
    return result


def _take(
    order: Sequence[str], groups: Mapping[str, Sequence[Example]], wanted: float
) -> list[str]:
    """Groups in order until `wanted` examples are there; at least the smallest group."""
    taken: list[str] = []
    size = 0
    for key in order:
        if size >= wanted or len(taken) + 2 >= len(order):
            break
        if size + len(groups[key]) <= 1.5 * wanted:
            taken.append(key)
            size += len(groups[key])
    return taken or [min(order, key=lambda key: (len(groups[key]), key))]


def _line(example: Example) -> str:
    row = example.model_dump(exclude_none=True)
    return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"


def first_of(error: ValidationError) -> str:
    """The first thing wrong with a row, in words."""
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"]) or "the row"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key; remove it"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"

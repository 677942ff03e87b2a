"""Rows of other people's files as examples: messages, Alpaca, ShareGPT.

    to_example({"instruction": "Add.", "input": "1 2", "output": "3"}, "row 1")
    to_example({"conversations": [{"from": "human", "value": "Hi"}, ...]}, "row 2")

A row is taken for what its keys say it is. Whatever does not fit raises `DatasetError`; nothing is
guessed, cut off or left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from factory.training.dataset import DatasetError, Example, Turn, first_of

Format = Literal["messages", "alpaca", "sharegpt"]

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_COMMON = {"id", "group", "label"}
_ALPACA = {"instruction", "input", "output", "system", "history"}


def to_example(row: Any, place: str) -> Example:
    """The example of one row; `place` names it in errors and where it has no id.

    Raises `DatasetError`.
    """
    if not isinstance(row, Mapping):
        raise DatasetError(f"{place}: a row must be an object, not {type(row).__name__}")
    found = {key: value for key, value in row.items() if value is not None}
    turns = _READERS[format_of(found, place)](found, place)
    try:
        values = {key: str(found[key]) for key in _COMMON & set(found)}
        example = Example.model_validate({"messages": turns, **values})
    except ValidationError as error:
        raise DatasetError(f"{place}: {first_of(error)}") from error
    name = example.id or place
    return example.model_copy(update={"id": name, "group": example.group or name})


def format_of(row: Mapping[str, Any], place: str) -> Format:
    """What a row's keys say it is. Raises `DatasetError`."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    shown = ", ".join(sorted(map(str, row))) or "none"
    raise DatasetError(
        f"{place}: its keys ({shown}) are of no known format; give messages, or conversations "
        "(ShareGPT), or instruction and output (Alpaca)"
    )


def _only(row: Mapping[str, Any], known: set[str], place: str) -> None:
    if unknown := sorted(set(row) - known - _COMMON):
        raise DatasetError(f"{place}: {unknown[0]}: unknown key; remove it")


def _messages(row: Mapping[str, Any], place: str) -> list[Any]:
    _only(row, {"messages"}, place)
    return _items(row["messages"], "messages", place)


def _alpaca(row: Mapping[str, Any], place: str) -> list[Any]:
    _only(row, _ALPACA, place)
    for key in _ALPACA & set(row) - {"history"}:
        if not isinstance(row[key], str):
            raise DatasetError(f"{place}: {key}: must be a text")
    turns: list[Any] = []
    if row.get("system"):
        turns.append({"role": "system", "content": row["system"]})
    for pair in _items(row.get("history", []), "history", place):
        if len(pair) != 2:
            raise DatasetError(f"{place}: history: each entry must be a question and an answer")
        turns += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    asked = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    return [
        *turns,
        {"role": "user", "content": asked},
        {"role": "assistant", "content": row["output"]},
    ]


def _sharegpt(row: Mapping[str, Any], place: str) -> list[Any]:
    _only(row, {"conversations", "system"}, place)
    turns: list[Any] = []
    if row.get("system"):
        turns.append({"role": "system", "content": row["system"]})
    for number, item in enumerate(_items(row["conversations"], "conversations", place)):
        where = f"{place}: conversations.{number}"
        if not isinstance(item, Mapping) or "from" not in item or "value" not in item:
            raise DatasetError(f"{where}: must have 'from' and 'value'")
        role = _ROLES.get(str(item["from"]))
        if role is None:
            raise DatasetError(
                f"{where}: '{item['from']}' is not a known speaker ({', '.join(sorted(_ROLES))})"
            )
        turns.append({"role": role, "content": item["value"]})
    return turns


def _items(value: Any, key: str, place: str) -> list[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise DatasetError(f"{place}: {key}: must be a list")
    return list(value)


_READERS = {"messages": _messages, "alpaca": _alpaca, "sharegpt": _sharegpt}


def turns_of(example: Example) -> tuple[Turn, ...]:
    """The turns that make an example its own: everything but the system's."""
    return tuple(turn for turn in example.messages if turn.role != "system")

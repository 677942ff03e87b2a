import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training import dataset
from factory.training.dataset import DatasetError, Example, Turn

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def example(number: int, group: str, label: str) -> Example:
    turns = (Turn(role="user", content=f"q{number}"), Turn(role="assistant", content=label))
    return Example(messages=turns, id=f"{label}.{number}", group=group, label=label)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "the row"),
        ('{"messages": []}', "messages"),
        (json.dumps({"messages": TURNS, "colour": 1}), "colour: unknown key"),
        (json.dumps({"messages": TURNS[::-1]}), "last message must be the assistant's"),
        (json.dumps({"messages": [{"role": "bot", "content": "x"}, TURNS[1]]}), "messages.0.role"),
        (json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}), "content"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n\n" + line + "\n")
    with pytest.raises(DatasetError, match=r"train.jsonl, line 3: ") as caught:
        dataset.read_messages(path)
    assert says in str(caught.value)


def test_an_empty_file_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="no examples"):
        dataset.read_messages(tmp_path / "train.jsonl")
    with pytest.raises(DatasetError, match="cannot read"):
        dataset.read_messages(tmp_path / "test.jsonl")


def test_only_messages_are_required_and_text_survives_a_round_trip(tmp_path: Path) -> None:
    odd = "line\u2028separator, \u00e9, \u0000 and \U0001f600"
    row = {"messages": [{"role": "user", "content": odd}, TURNS[1]]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    read = dataset.read_messages(tmp_path / "train.jsonl")
    assert read[0].chat[0]["content"] == odd
    assert read[0].id == read[0].group == "line 1"
    dataset.write(tmp_path, {"test": read}, dataset.card({"test": read}))
    assert dataset.read_messages(tmp_path / "test.jsonl") == read


@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=12), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_no_group_is_split_and_every_label_is_everywhere(sizes: list[list[int]], seed: int) -> None:
    rows = [
        example(number, f"{label}.{group}", f"label{label}")
        for label, groups in enumerate(sizes)
        for group, size in enumerate(groups)
        for number in range(100 * group, 100 * group + size)
    ]
    split = dataset.split_by_group(rows, seed)
    assert Counter(item.id for part in split.values() for item in part) == Counter(
        row.id for row in rows
    )
    groups = [{item.group for item in part} for part in split.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for part in split.values():
        assert {item.label for item in part} == {row.label for row in rows}
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert dataset.split_by_group(shuffled, seed) == split


def test_a_label_with_two_groups_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="label 'json' has 2 groups"):
        dataset.split_by_group([example(1, "a", "json"), example(2, "b", "json")], 0)


def test_the_hash_changes_with_any_example() -> None:
    one, two = example(1, "a", "os"), example(2, "b", "os")
    assert dataset.dataset_hash({"train": [one]}) == dataset.dataset_hash({"train": [one]})
    assert dataset.dataset_hash({"train": [one]}) != dataset.dataset_hash({"train": [two]})
    assert dataset.dataset_hash({"train": [one]}) != dataset.dataset_hash({"test": [one]})

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training.dataset import DatasetError
from factory.training.formats import to_example


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in to_example(row, "row 1").messages]


def test_messages_alpaca_and_sharegpt_say_the_same() -> None:
    wanted = [("system", "Be brief."), ("user", "Add.\n\n1 2"), ("assistant", "3")]
    messages = [{"role": role, "content": content} for role, content in wanted]
    alpaca = {"system": "Be brief.", "instruction": "Add.", "input": "1 2", "output": "3"}
    sharegpt = {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Add.\n\n1 2"},
            {"from": "gpt", "value": "3"},
        ],
    }
    assert said({"messages": messages}) == said(alpaca) == said(sharegpt) == wanted


def test_alpaca_keeps_its_history_and_needs_no_input() -> None:
    row = {"instruction": "And 2?", "input": "", "output": "4", "history": [["1?", "2"]]}
    assert said(row) == [
        ("user", "1?"),
        ("assistant", "2"),
        ("user", "And 2?"),
        ("assistant", "4"),
    ]


def test_names_groups_and_labels_travel() -> None:
    row = {"instruction": "Add.", "output": "3", "id": 17, "label": "math", "group": None}
    example = to_example(row, "row 9")
    assert (example.id, example.group, example.label) == ("17", "17", "math")
    assert to_example({"instruction": "Add.", "output": "3"}, "row 9").id == "row 9"


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ([], "must be an object"),
        ({"text": "hello"}, r"its keys \(text\) are of no known format"),
        ({"messages": "hello"}, "messages: must be a list"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "at least 2"),
        ({"messages": [{"role": "robot", "content": "x"}] * 2}, r"messages\.0\.role"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "'alien' is not a known speaker"),
        ({"conversations": ["hello"]}, "must have 'from' and 'value'"),
        ({"instruction": "Add.", "output": ""}, "at least 1 character"),
        ({"instruction": 3, "output": "x"}, "instruction: must be a text"),
        ({"instruction": "x", "output": "y", "weight": 2}, "weight: unknown key"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "a question and an answer"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(row: Any, wrong: str) -> None:
    with pytest.raises(DatasetError, match=f"a.jsonl, line 4: .*{wrong}"):
        to_example(row, "a.jsonl, line 4")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = ["messages", "conversations", "instruction", "input", "output", "history", "system", "id"]


@given(row=JSON | st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_row_is_an_example_or_a_sentence(row: Any) -> None:
    try:
        last = to_example(row, "row 1").messages[-1].role
    except DatasetError as error:
        last = str(error)
    assert last == "assistant" or last.startswith("row 1: ")

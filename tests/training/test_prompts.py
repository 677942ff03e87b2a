import json
from pathlib import Path

import pytest

from factory.training.dataset import DatasetError, card, dataset_hash
from factory.training.prompts import prompts_hash, read_prompts

ASK = {"role": "user", "content": "which module?"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_prompts_come_in_order_with_a_name_each(tmp_path: Path) -> None:
    write(tmp_path, {"messages": [ASK]}, {"messages": [ASK], "id": "b"})
    found = read_prompts(tmp_path)
    assert [item.id for item in found] == ["line 1", "b"]
    assert prompts_hash(found) == prompts_hash(read_prompts(tmp_path / "prompts.jsonl"))
    assert prompts_hash(found) != prompts_hash(found[:1])


def test_an_answer_makes_it_a_synthetic_example(tmp_path: Path) -> None:
    write(tmp_path, {"messages": [ASK], "id": "a"})
    example = read_prompts(tmp_path)[0].answered("json", "json")
    assert example.synthetic
    assert example.chat == [ASK, {"role": "assistant", "content": "json"}]
    real = example.model_copy(update={"synthetic": None})
    assert dataset_hash({"train": [example]}) != dataset_hash({"train": [real]})
    assert card({"train": [example, real]})["synthetic"] == {"train": 1}
    assert "synthetic" not in card({"train": [real]})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [{"role": "assistant", "content": "x"}]}], "line 1: messages: the last"),
        ([{"messages": [ASK], "answer": "x"}], "line 1: answer"),
        ([{"messages": [ASK], "id": "a"}, {"messages": [ASK], "id": "a"}], "line 2: id 'a' is use"),
        ([], "has no prompts"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(
    tmp_path: Path, rows: list[object], message: str
) -> None:
    write(tmp_path, *rows)
    with pytest.raises(DatasetError, match=message):
        read_prompts(tmp_path)


def test_broken_json_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{")
    with pytest.raises(DatasetError, match="line 1: not valid JSON"):
        read_prompts(tmp_path)
    with pytest.raises(DatasetError, match="cannot read the prompts"):
        read_prompts(tmp_path / "nowhere.jsonl")

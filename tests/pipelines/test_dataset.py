"""Bringing data: checks, splits, the card, and what is refused."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from factory.catalog.objects import ObjectStore
from factory.evaluation.suite import Case, Message, Suite
from factory.evaluation.suite import write as write_suite
from factory.training import dataset as data
from factory.training.dataset import DatasetError
from factory.training.formats import to_example
from factory.training.intake import Found
from pipelines import dataset

WORDS = ["river", "stone", "cloud", "ember", "field", "night", "glass", "copper", "violin"]


def found(count: int = 40, *rejected: str) -> Found:
    rows = []
    for number in range(count):
        words = [WORDS[(number * step + step) % len(WORDS)] for step in range(1, 12)]
        asked = f"Case {number}: " + " ".join(f"{word}{number}" for word in words)
        rows.append(to_example({"instruction": asked, "output": f"{number}"}, f"a, line {number}"))
    return Found(tuple(rows), rejected)


def options(*arguments: str) -> Namespace:
    return dataset.parser().parse_args(["a.jsonl", "--name", "mine", *arguments])


def test_a_data_set_is_stored_with_its_card(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    item, facts = dataset.make(store, "mine", found(40, "a, line 7: odd"), options("--skip"), print)
    split = data.read(item.path)
    assert sum(map(len, split.values())) == 40
    assert all(split.values())
    assert facts["malformed"] == ["a, line 7: odd"]
    assert json.loads((item.path / "card.json").read_text()) == facts
    text = (item.path / "card.md").read_text()
    assert "| train |" in text
    assert "41 rows were read. 1 were malformed" in text


def test_malformed_rows_stop_it_and_are_all_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [f"a, line {number}: odd" for number in range(25)]
    with pytest.raises(DatasetError, match="25 of 65 rows are malformed, the first: a, line 0"):
        dataset.make(ObjectStore(tmp_path), "mine", found(40, *wrong), options(), print)
    assert "and 5 more" in capsys.readouterr().out
    assert not ObjectStore(tmp_path).list("datasets")


def test_questions_that_a_suite_judges_by_are_left_out(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    rows = found()
    case = Case(
        id="one",
        messages=(Message(role="user", content=rows.examples[3].messages[0].content),),
        expected="3",
    )
    suite = Suite.build(name="desk", version=1, cases=(case,), scorer="exact")

    def fill(folder: Path) -> None:
        write_suite(suite, folder / "desk.suite")

    store.put("suites", "desk", fill)
    _, facts = dataset.make(store, "mine", rows, options(), print)
    assert facts["contaminated"] == {"desk": ["a, line 3"]}
    assert facts["checked_against"] == ["desk"]
    with pytest.raises(DatasetError, match="no suite 'other'"):
        dataset.make(store, "mine", rows, options("--suite", "other"), print)


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        dataset.make(ObjectStore(tmp_path), "mine", found(2), options(), print)

"""Labelled tables: from files that may be wrong, and from the ledger's outcomes."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from factory.ledger.samples import Attempt, LabelledSample
from factory.routing.errors import RoutingError
from factory.routing.labels import (
    Table,
    confidences_from_samples,
    from_samples,
    read,
    read_confidences,
)


def sample(success, *attempts, embedding=(1.0, 2.0)):
    return LabelledSample(
        request_id="r",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        endpoint="e",
        embedding=np.array(embedding, "<f2").tobytes(),
        attempts=[
            Attempt(tier=tier, model="m", accepted=accepted, cost_nusd=1, confidence=sure)
            for tier, accepted, sure in attempts
        ],
        success=success,
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_the_same_table_from_each_format(tmp_path, kind):
    frame = pd.DataFrame(
        {
            "subject": ["never used"] * 3,
            "prompt": ["a", "b, with a comma", "ü"],
            "strong_correct": [True, True, False],
            "weak_correct": [True, False, False],
        }
    )
    path = tmp_path / f"labels.{kind}"
    write = {
        "parquet": frame.to_parquet,
        "csv": lambda file: frame.to_csv(file, index=False),
        "jsonl": lambda file: frame.to_json(file, orient="records", lines=True),
    }
    write[kind](path)
    table = read(path)
    assert table.tiers == (1, 2)
    assert table.prompts == ("a", "b, with a comma", "ü")
    assert table.good.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_labels_by_tier_may_be_missing(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("prompt,tier1_good,tier3_good\na,0.5,1\nb,,true\n")
    table = read(path)
    assert table.tiers == (1, 3)
    assert table.good[0].tolist() == [0.5, 1]
    assert np.isnan(table.good[1, 0])
    assert table.complete().tolist() == [0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.csv", "prompt,weak_correct\na,1\n", "needs the columns"),
        ("x.csv", "text,weak_correct,strong_correct\na,1,1\n", "needs the columns"),
        ("x.csv", "prompt,weak_correct,strong_correct\na,1,7\n", "row 1: strong_correct"),
        ("x.csv", "prompt,weak_correct,strong_correct\na,1,maybe\n", "row 1: strong_correct"),
        ("x.csv", "prompt,weak_correct,strong_correct\n,1,1\n", "row 1: prompt"),
        ("x.csv", "", "cannot be read"),
        ("x.jsonl", '{"prompt": "a"\n', "line 1 is not JSON"),
        ("x.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.txt", "", "neither"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_place(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RoutingError, match=says):
        read(path)
    with pytest.raises(RoutingError, match=r"no file|neither"):
        read(tmp_path / f"missing-{name}")


def test_equal_prompts_stay_on_one_side_of_a_split():
    prompts = tuple(f"p{i % 40}" for i in range(100))
    table = Table(tiers=(1, 2), good=np.zeros((100, 2), np.float32), prompts=prompts)
    first, second = table.split(0.5, seed=3)
    assert len(first) + len(second) == 100
    assert not set(first.prompts) & set(second.prompts)


def test_outcomes_become_labels():
    table = from_samples(
        [
            sample(True, (1, True, 0.9)),
            sample(False, (1, True, 0.9)),
            sample(True, (1, False, 0.2), (2, True, None)),
            sample(False, (2, True, None)),
            sample(True, (2, True, None)),
            sample(None, (1, True, 0.9)),
            sample(True, (1, True, 0.9), embedding=(1.0,)),
            sample(True),
        ],
        tiers=(1, 2),
        dimensions=2,
    )
    expected = [[1, 1], [0, np.nan], [0, 1], [0, 0], [np.nan, 1]]
    np.testing.assert_array_equal(table.good, np.array(expected, np.float32))
    assert table.embeddings.tolist() == [[1, 2]] * 5
    assert table.complete().tolist() == [0, 2, 3]


def test_confidences_from_outcomes_and_from_a_file(tmp_path):
    sure, right = confidences_from_samples(
        [
            sample(True, (1, True, 0.9)),
            sample(False, (1, True, 0.6)),
            sample(True, (1, False, 0.2), (2, True, 0.8)),
            sample(None, (1, True, 0.7)),
        ],
        tier=1,
    )
    assert (sure.tolist(), right.tolist()) == ([0.9, 0.6], [1, 0])
    path = tmp_path / "pairs.csv"
    path.write_text("confidence,good\n0.9,true\n0.5,false\n0.4,\n")
    sure, right = read_confidences(path)
    assert (sure.tolist(), right.tolist()) == ([0.9, 0.5], [1, 0])
    path.write_text("sure,good\n1,1\n")
    with pytest.raises(RoutingError, match="confidence and good"):
        read_confidences(path)

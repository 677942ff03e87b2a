from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from factory.gateway.semantic.fitting import SIGNS, SLOTS, fit, pairs_from
from factory.gateway.semantic.labelled import PairsError, read_pairs
from factory.gateway.semantic.score import FEATURES, PairModel

from .conftest import Letters


def test_the_score_orders_pairs(letters: Letters) -> None:
    model = PairModel(letters)
    asked = "How do I cancel my order?"
    identical = model.compare(asked, asked.upper()).score
    reworded = model.compare(asked, "What's the way to cancel an order?").score
    longer = model.compare(asked, "How do I cancel my wholesale order?").score
    opposite = model.compare(asked, "How do I not cancel my order?")
    assert identical == 1.0
    assert 1.0 > reworded > longer > 0.0
    assert opposite.score == 0.0
    assert opposite.verdict.reasons


def test_the_score_is_symmetric(letters: Letters) -> None:
    model = PairModel(letters)
    a, b = "Where do I pay the monthly bill?", "Where can the bill be paid?"
    assert model.compare(a, b).score == pytest.approx(model.compare(b, a).score)


def test_the_fit_respects_the_signs() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((400, len(FEATURES)))
    y = x[:, 0] + 0.3 * rng.random(400) < 0.6
    slopes, _ = fit(x, y)
    for name, slope in zip(FEATURES, slopes, strict=True):
        assert slope * SIGNS.get(name, 1) >= 0


def test_pairs_are_made_reproducibly_and_labelled_by_kind() -> None:
    lines = ["How do I fly from {city} to {city2}?|What's the way to fly from {city} to {city2}?"]
    made = [list(pairs_from(lines * 4, SLOTS, random.Random(3))) for _ in range(2)]
    assert made[0] == made[1]
    for pair in made[0]:
        assert pair.same == (pair.kind == "paraphrase")
    assert {"entity", "direction", "negation"} <= {pair.kind for pair in made[0]}


def test_the_shipped_files_belong_together() -> None:
    folder = Path(__file__).parents[3] / "factory" / "gateway" / "semantic"
    weights = json.loads((folder / "weights.json").read_text())
    assert tuple(weights["features"]) == FEATURES
    assert "Princeton" in json.loads((folder / "lexicon.json").read_text())["notice"]


def test_labelled_pairs_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('a,b,same,kind\n"one, two",three,1,x\nfour,five,False,\n', "utf-8")
    pairs = read_pairs(file)
    assert [(p.a, p.b, p.same, p.kind) for p in pairs] == [
        ("one, two", "three", True, "x"),
        ("four", "five", False, ""),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "no column 'same'"),
        ("a,b,same\n", "has no pairs"),
        ("a,b,same\nx,,1\n", "line 2 of .* lacks a question in column 'b'"),
        ("a,b,same\nx,y,maybe\n", "line 2 of .* says same='maybe'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(text)
    with pytest.raises(PairsError, match=sentence):
        read_pairs(file)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="cannot be read"):
        read_pairs(tmp_path / "none.csv")

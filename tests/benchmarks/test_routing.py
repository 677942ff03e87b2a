"""The routing benchmark on a table of another kind than the one it is usually run on."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pandas as pd
import pytest

from benchmarks import routing
from factory.routing.errors import RoutingError
from factory.routing.labels import Table, read

EASY = ["refund", "invoice", "password", "delivery", "voucher", "printer"]
HARD = ["lemma", "eigenvalue", "integral", "manifold", "theorem", "operator"]


class Words:
    """Every word has a fixed random vector; a text is their mean, at unit length."""

    hash = "words"

    def encode(self, texts):
        return np.stack([self.encode_one(text) for text in texts])

    def encode_one(self, text):
        seeds = [zlib.crc32(word.encode()) for word in text.split()]
        mean = np.mean([np.random.default_rng(seed).normal(size=16) for seed in seeds], axis=0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(600):
        hard = rng.random() < 0.4
        words = [*rng.choice(HARD if hard else EASY, 3), "about", f"case{number}"]
        rows.append(
            {
                "prompt": " ".join(rng.permutation(words)),
                "subject": "the label itself would be cheating",
                "weak_correct": bool(rng.random() < (0.2 if hard else 0.95)),
                "strong_correct": bool(rng.random() < 0.95),
            }
        )
    path = tmp_path_factory.mktemp("data") / "table.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_all_keys_and_the_references(path, tmp_path):
    table = read(path)
    deep = Words().encode(table.prompts)
    plot = tmp_path / "plot.png"
    figures = routing.run(table, Words(), 0.5, 1, encoder=(deep, 1.0), sentences=deep, plot=plot)
    assert json.loads(json.dumps(figures)) == figures
    assert {"cpt50", "cpt80", "cpt95", "decision_p50_ms", "encoder_ms"} <= figures.keys()
    assert figures["n_train"] + figures["n_test"] == 600
    assert figures["random_apgr"] == pytest.approx(0.5)
    assert 0.65 < figures["apgr"] <= figures["oracle_apgr"]
    assert figures["encoder_apgr"] > 0.65
    assert figures["taught_apgr"] > 0.65
    assert 0.5 < figures["sentence_knn_apgr"] < figures["oracle_apgr"]
    assert figures["apgr_of_thresholds"] == pytest.approx(figures["apgr"], abs=0.02)
    assert figures["best_single"] == "strong"
    assert plot.is_file()
    for row in figures["calibrated"]:
        assert row["reasons"]
        assert row["threshold"] is None or {"holds", "achieved", "bound"} <= row.keys()


def test_a_table_it_cannot_use_is_refused():
    with pytest.raises(RoutingError, match="both labels"):
        routing.run(
            Table(tiers=(1, 2), good=np.full((4, 2), np.nan, np.float32), prompts=tuple("abcd")),
            Words(),
            0.5,
            0,
        )


def test_a_missing_file_is_said_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["routing", "--data", str(tmp_path / "none.parquet")])
    with pytest.raises(SystemExit, match=r"routing: there is no file"):
        routing.main()

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pairs import from_intents, from_wordings, unique
from benchmarks.semantic_cache import halves, static_threshold
from factory.gateway.semantic.labelled import LabelledPair


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static embedder over letters: small, and real in form."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vectors = np.random.default_rng(0).standard_normal((len(words), 96)).astype(np.float32)
    folder = tmp_path_factory.mktemp("static")
    StaticModel(vectors, tokenizer, normalize=True).save_pretrained(folder)
    return folder


def test_it_prints_one_object_with_the_fixed_keys(embedder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("a", "b", "same", "kind"))
        for pair in unique(from_wordings(random.Random(0), 6)):
            writer.writerow((pair.a, pair.b, int(pair.same), pair.kind))
    words = ["-m", "benchmarks.semantic_cache", "--pairs", str(pairs), "--embedder", str(embedder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {
        *("hit_rate", "false_hit_rate", "bound", "static_hit_rate", "static_false_hit_rate"),
    } <= found.keys()
    assert found["certified"]
    assert found["false_hit_rate"] <= 0.01 >= found["bound"]
    assert found["hit_rate"] > found["static_hit_rate"]
    assert "halves" in done.stderr


def test_a_missing_column_ends_with_one_sentence(embedder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\n1,2\n")
    words = ["-m", "benchmarks.semantic_cache", "--pairs", str(pairs), "--embedder", str(embedder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("its first line must be a,b,same")


def test_no_question_is_in_both_halves() -> None:
    pairs = [LabelledPair(f"q{n // 3}", f"other {n}", n % 2 == 0) for n in range(60)]
    first, second = halves(pairs, seed=1)
    assert len(first) + len(second) == 60
    assert abs(len(first) - len(second)) <= 3
    assert not {pair.a for pair in first} & {pair.a for pair in second}


def test_the_static_threshold_is_the_lowest_of_its_rate() -> None:
    cosines = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    same = np.zeros(5, dtype=bool)
    assert (cosines >= static_threshold(cosines, same, 0.0)).sum() == 0
    assert (cosines >= static_threshold(cosines, same, 0.4)).sum() == 2
    assert (cosines >= static_threshold(cosines, same, 1.0)).sum() == 5


def test_the_pairs_of_a_file_of_intents_keep_their_labels(tmp_path: Path) -> None:
    file = tmp_path / "intents.csv"
    rows = [
        ("What's the fee for 3 transfers?", "fees"),
        ("Is my card on the way?", "delivery"),
        ("I don't know my code", "code"),
    ]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])
    pairs = list(from_intents(file, random.Random(0), 10))
    assert all(pair.same == (pair.kind in ("frame", "contraction")) for pair in pairs)
    assert {"frame", "contraction", "number", "negation"} <= {pair.kind for pair in pairs}

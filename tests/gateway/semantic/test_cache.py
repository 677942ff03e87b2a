from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.config.cache import SemanticCache as Settings
from factory.gateway.semantic.cache import SemanticCache
from factory.gateway.semantic.index import Entry, Index
from factory.gateway.semantic.reading import read

from .conftest import Letters

SCOPE = "support/helpdesk"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(letters: Letters, clock: Clock) -> SemanticCache:
    thresholds = {SCOPE: 0.6, "other/helpdesk": 0.6}
    return SemanticCache(
        letters, Settings(max_entries=100), thresholds.get, ttl_s=60, monotonic=clock
    )


def test_a_paraphrase_hits_and_says_why(cache: SemanticCache) -> None:
    cache.add(SCOPE, b"c", "How do I reset my router password?", b"k")
    hit = cache.find(SCOPE, b"c", "What's the best way to reset my router password?")
    assert hit is not None
    assert (hit.key, hit.question) == (b"k", "How do I reset my router password?")
    assert hit.score >= 0.6
    assert "calibrated threshold 0.600" in hit.reasons[0]


@pytest.mark.parametrize(
    "question",
    [
        "How do I not reset my router password?",
        "How do I reset my router username?",
        "How do I reset my second router password?",
        "Why do I reset my router password?",
    ],
)
def test_a_look_alike_misses(cache: SemanticCache, question: str) -> None:
    cache.add(SCOPE, b"c", "How do I reset my router password?", b"k")
    assert cache.find(SCOPE, b"c", question) is None


def test_everything_else_must_be_identical(cache: SemanticCache) -> None:
    cache.add(SCOPE, b"c", "Where is my parcel?", b"k")
    assert cache.find(SCOPE, b"another system prompt", "Where is my parcel?") is None
    assert cache.find("other/helpdesk", b"c", "Where is my parcel?") is None
    assert cache.find(SCOPE, b"c", "Where is my parcel?") is not None


def test_a_scope_without_a_calibration_neither_keeps_nor_finds(cache: SemanticCache) -> None:
    cache.add("research/helpdesk", b"c", "Where is my parcel?", b"k")
    assert cache.size("research/helpdesk") == 0
    assert cache.find("research/helpdesk", b"c", "Where is my parcel?") is None


def test_old_entries_are_not_found(cache: SemanticCache, clock: Clock) -> None:
    cache.add(SCOPE, b"c", "Where is my parcel?", b"k")
    clock.now = 61
    assert cache.find(SCOPE, b"c", "Where is my parcel?") is None
    assert cache.size(SCOPE) == 0


def test_forget_and_remove(cache: SemanticCache) -> None:
    cache.add(SCOPE, b"c", "Where is my parcel?", b"1")
    cache.add(SCOPE, b"c", "How do I pay the invoice?", b"2")
    cache.remove(SCOPE, b"c", b"1")
    assert cache.find(SCOPE, b"c", "Where is my parcel?") is None
    assert cache.find(SCOPE, b"c", "How do I pay the invoice?") is not None
    cache.forget(SCOPE)
    assert cache.find(SCOPE, b"c", "How do I pay the invoice?") is None


def test_the_least_recently_used_question_makes_room(cache: SemanticCache) -> None:
    for number in range(100):
        cache.add(SCOPE, b"c", f"What is in box {number + 2}?", number.to_bytes(2, "big"))
    assert cache.find(SCOPE, b"c", "What is in box 2?") is not None
    cache.add(SCOPE, b"c", "Where is my parcel?", b"new")
    assert cache.size(SCOPE) == 100
    assert cache.find(SCOPE, b"c", "What is in box 2?") is not None
    assert cache.find(SCOPE, b"c", "What is in box 3?") is None


def test_very_long_questions_stay_out(cache: SemanticCache) -> None:
    cache.add(SCOPE, b"c", "word " * 1000, b"k")
    assert cache.size(SCOPE) == 0
    assert cache.find(SCOPE, b"c", "word " * 1000) is None


def unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(96).astype(np.float32)
    # Leading coordinates carry most, as after PCA.
    vector *= np.linspace(2.0, 0.1, 96, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def test_many_rows_give_the_same_nearest_as_a_full_search() -> None:
    rng = np.random.default_rng(0)
    index = Index(96, 5000, 60, lambda: 0.0)
    vectors = [unit(rng) for _ in range(3000)]
    for row, vector in enumerate(vectors):
        context = b"a" if row % 2 else b"b"
        index.add(context, vector, Entry(str(row), read(""), row.to_bytes(2, "big")))
    matrix = np.stack(vectors)
    for row in range(0, 200, 7):
        query = vectors[row] + 0.1 * unit(rng)
        query /= np.linalg.norm(query)
        context = b"a" if row % 2 else b"b"
        found = index.candidates(context, query, 1, 0.0)
        scores = matrix @ query
        scores[[i for i in range(3000) if (i % 2 == 1) != (context == b"a")]] = -1
        assert int(found[0][0].question) == int(scores.argmax())
        assert found[0][1] == pytest.approx(float(scores.max()), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ARF"), st.integers(0, 3), st.integers(0, 12)), max_size=60)
)
def test_the_index_agrees_with_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    rng = np.random.default_rng(1)
    vectors = [unit(rng) for _ in range(13)]
    index = Index(96, 6, 60, lambda: 0.0)
    kept: dict[tuple[int, int], None] = {}
    for what, context, key in steps:
        name, place = bytes([context]), bytes([key])
        if what == "A":
            kept.pop((context, key), None)
            while len(kept) >= 6:
                kept.pop(next(iter(kept)))
            kept[(context, key)] = None
            index.add(name, vectors[key], Entry(str(key), read(""), place))
        elif what == "R":
            kept.pop((context, key), None)
            index.remove(name, place)
        else:
            index.touch(name, place)
            if (context, key) in kept:
                kept[(context, key)] = kept.pop((context, key))
        assert len(index) == len(kept)
        for wanted in range(4):
            found = index.candidates(bytes([wanted]), vectors[0], 13, -1.0)
            assert {int(entry.question) for entry, _ in found} == {
                number for group, number in kept if group == wanted
            }

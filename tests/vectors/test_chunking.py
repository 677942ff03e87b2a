"""Chunks: short enough, nothing lost, cut where a reader would."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.vectors.chunking import chunked, spans

TEXTS = st.text(alphabet="ab é.!?\n\t;", max_size=200)


def test_a_text_is_cut_at_sentences_and_paragraphs():
    text = "First sentence. Second one!\n\nA paragraph of its own."
    assert chunked(text, 30, 0) == ["First sentence. Second one!", "A paragraph of its own."]


def test_a_chunk_begins_with_whole_sentences_of_the_one_before():
    text = "One is first. Two is next. Three is last."
    assert chunked(text, 27, 14) == ["One is first. Two is next.", "Two is next. Three is last."]


def test_long_words_are_cut_hard_and_long_sentences_between_words():
    assert chunked("abcdefghij", 4, 0) == ["abcd", "efgh", "ij"]
    assert chunked("one two three four", 9, 0) == ["one two", "three", "four"]


@pytest.mark.parametrize(("most", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_an_overlap_must_leave_room(most, overlap):
    with pytest.raises(ValueError, match="overlap"):
        spans("text", most, overlap)


@given(TEXTS, st.integers(1, 40), st.data())
def test_nothing_is_lost_or_too_long_and_every_chunk_says_something_new(text, most, data):
    overlap = data.draw(st.integers(0, most - 1))
    found = spans(text, most, overlap)
    covered = {place for start, end in found for place in range(start, end)}
    assert all(place in covered for place, letter in enumerate(text) if letter.strip())
    assert all(0 < end - start <= most for start, end in found)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(found))
    assert all(a[1] - b[0] <= overlap for a, b in pairwise(found))
    assert all(chunked(text, most, overlap))

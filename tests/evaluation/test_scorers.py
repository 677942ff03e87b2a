from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.evaluation.scorers import exact, first_label, mentions, normalise

LABELS = ("os", "os.path", "xml", "http", "asyncio")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("xml", True), (" XML.\n", True), ("`xml`", True), ('"xml".', True), ("xml module", False)],
)
def test_exact_forgives_case_space_quotes_and_trailing_punctuation(
    answer: str, expected: bool
) -> None:
    assert exact(answer, "xml", LABELS) is expected


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("The answer is asyncio, not http", "asyncio"),
        ("HTTP!", "http"),
        ("the cosmos", None),
        ("os.path it is", "os.path"),
        ("os, or xml", "os"),
        ("xmlrpc", None),
        ("", None),
    ],
)
def test_first_label_is_the_first_whole_word(answer: str, label: str | None) -> None:
    assert first_label(answer, LABELS) == label


def test_mentions_needs_the_expected_label_first() -> None:
    assert mentions("It is http or xml", "http", LABELS)
    assert not mentions("It is http or xml", "xml", LABELS)
    assert not mentions("no idea", "xml", LABELS)


def test_no_labels_means_nothing_is_named() -> None:
    assert first_label("anything", ()) is None


@given(st.text())
def test_normalise_is_idempotent_for_any_text(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(st.sampled_from(LABELS), st.text(alphabet=" \n.,;:!?'\"*`", max_size=6))
def test_a_label_with_punctuation_around_it_scores(label: str, noise: str) -> None:
    assert mentions(f"{noise}{label}{noise}", label, LABELS)

from hypothesis import given, settings
from hypothesis import strategies as st

from factory.training.dataset import Example, Turn
from factory.training.duplicates import clean, near_duplicates, runs

LONG = "the quick brown fox jumps over the lazy dog while the cat sleeps near the warm old stove "


def example(name: str, asked: str, answer: str) -> Example:
    turns = (Turn(role="user", content=asked), Turn(role="assistant", content=answer))
    return Example(messages=turns, id=name, group=name)


def test_texts_that_differ_in_a_word_are_found_and_others_are_not() -> None:
    texts = [LONG * 3, "something else entirely " * 5, (LONG * 3).upper() + " indeed", "dog", ""]
    assert near_duplicates(texts) == [[0, 2]]


@settings(max_examples=20, deadline=None)
@given(
    words=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), copies=st.integers(1, 4)
)
def test_equal_texts_are_always_one_cluster(words: list[str], copies: int) -> None:
    text = " ".join(words)
    found = near_duplicates([text] * copies)
    assert found == ([list(range(copies))] if copies > 1 else [])


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("ab ", min_size=1, max_size=12), max_size=8))
def test_every_cluster_holds_a_pair_over_the_threshold(texts: list[str]) -> None:
    for cluster in near_duplicates(texts, 0.8):
        sets = [runs(texts[at]) for at in cluster]
        for at, mine in enumerate(sets):
            others = sets[:at] + sets[at + 1 :]
            assert any(len(mine & other) >= 0.8 * len(mine | other) for other in others)


def test_one_of_each_cluster_is_kept_and_contradictions_stay_together() -> None:
    where = "where is the nearest harbour with room for large sailing boats today"
    rows = [
        example("a", LONG * 2, "fox"),
        example("b", LONG * 2 + "indeed", "fox"),
        example("c", "How do I parse a date in the standard library of this language?", "so"),
        example("d", where, "here"),
        example("e", where, "far"),
    ]
    cases = ["How do I parse a date in the standard library of this language"]
    kept, report = clean(rows, {"desk": cases}, threshold=0.75)
    assert [row.id for row in kept] == ["a", "d", "e"]
    assert report["near_duplicates"] == [["a", "b"]]
    assert report["contaminated"] == {"desk": ["c"]}
    assert report["contradictions"] == [["d", "e"]]
    assert kept[1].group == kept[2].group

from hypothesis import given
from hypothesis import strategies as st

from factory.training.dataset import Example, Turn
from factory.training.screening import CONTAMINATED, DUPLICATE, Overlap, given_away, screen

WORDS = st.lists(
    st.sampled_from(["the", "a", "cat", "sat", "on", "mat", "and", "ran", "off", "home"]),
    min_size=1,
)


def remembering(*texts: str) -> Overlap:
    made = Overlap()
    for text in texts:
        made.add(text)
    return made


@given(words=WORDS, others=st.lists(WORDS, max_size=4))
def test_a_text_is_like_itself_whatever_its_case_and_punctuation(
    words: list[str], others: list[list[str]]
) -> None:
    index = remembering(*map(" ".join, others), " ".join(words))
    shouted = "; ".join(words).upper() + "!"
    assert index.share(shouted) == 1.0
    assert index.likeness(shouted) == 1.0


@given(mine=WORDS, theirs=WORDS)
def test_both_measures_are_shares_and_symmetric(mine: list[str], theirs: list[str]) -> None:
    left, right = " ".join(mine), " ".join(theirs)
    for measure in (Overlap.share, Overlap.likeness):
        forth, back = measure(remembering(left), right), measure(remembering(right), left)
        assert forth == back
        assert 0 <= forth <= 1
    assert remembering(left).likeness(right) <= remembering(left).share(right)


def test_a_case_hidden_in_a_longer_text_is_found_and_a_common_phrase_is_not() -> None:
    case = "Return the header of the message with the given name or a default value"
    index = remembering(case)
    assert index.share(f"As you know, one may {case}, which is what many people want to do.") == 1
    assert index.share("Return the header of the archive that was opened by somebody else") < (
        CONTAMINATED
    )
    changed = case.replace("default", "fallback")
    assert index.likeness(changed) < DUPLICATE < index.likeness(case + " here")


def test_texts_without_a_word_are_like_nothing() -> None:
    index = remembering("___", "")
    assert len(index) == 0
    assert index.share("___") == 0.0


def test_filters_are_asked_in_order_and_may_remember() -> None:
    seen: set[int] = set()

    def new(item: int) -> bool:
        fresh = item not in seen
        seen.add(item)
        return fresh

    kept, dropped = screen([4, 4, 3, 2, 3, 8], [("odd", lambda n: n % 2 == 0), ("again", new)])
    assert kept == [4, 2, 8]
    assert dropped == {"odd": 2, "again": 1}


def test_train_examples_that_repeat_a_held_out_one_are_found_by_split() -> None:
    def ask(name: str, text: str) -> Example:
        turns = (Turn(role="user", content=text), Turn(role="assistant", content="yes"))
        return Example(messages=turns, id=name, group=name)

    where = "where is the nearest harbour with room for large sailing boats today"
    split = {
        "train": [ask("a", where + " or tomorrow"), ask("b", "what is the time now in Lima")],
        "validation": [ask("c", where.upper())],
        "test": [ask("d", "how deep is the sea below the old bridge")],
    }
    assert given_away(split) == {"validation": ["a"], "test": []}
    assert given_away(split, most=0) == {"validation": [], "test": []}

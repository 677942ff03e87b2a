"""The bound of a prompt's length never lies below its count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.prompts import PromptCounter

COUNTER: dict[Path, PromptCounter] = {}


@pytest.fixture
def counter(model_dir: Path) -> PromptCounter:
    return COUNTER.setdefault(model_dir, PromptCounter(str(model_dir)))


turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=80)}
    ),
    min_size=1,
    max_size=6,
)


def test_a_prompt_is_counted_with_its_template(counter: PromptCounter) -> None:
    question = [{"role": "user", "content": "Which module copies files?"}]
    assert counter.count(question) > 5
    assert counter.count(question) <= counter.most(question) < 400


def test_the_bound_holds(counter: PromptCounter) -> None:
    @settings(max_examples=60, deadline=None)
    @given(turns)
    def holds(said: list[dict[str, str]]) -> None:
        most = counter.most(said)
        assert most is not None
        assert counter.count(said) <= most

    holds()

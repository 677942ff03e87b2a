from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from factory.training import chat
from factory.training.chat import IGNORED, collate, encode, encode_all
from factory.training.dataset import Example, Turn
from factory.training.errors import TrainingError
from tests.training import tiny


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def learned(tokenizer: Any, sample: chat.Sample) -> str:
    return tokenizer.decode([target for target in sample.targets if target != IGNORED])


def talk(*contents: str) -> Example:
    roles = ["user", "assistant"] * len(contents)
    turns = [Turn(role=role, content=text) for role, text in zip(roles, contents, strict=False)]
    return Example(messages=tuple(turns), id="talk")


def test_only_the_answer_and_its_end_are_learned(tokenizer: Any) -> None:
    example = tiny.examples(1)[0]
    sample = encode(tokenizer, example)
    assert learned(tokenizer, sample) == "json<|im_end|>"
    prompt = tokenizer.apply_chat_template(
        example.chat[:-1], add_generation_prompt=True, return_dict=False
    )
    assert list(sample.ids[: len(prompt)]) == prompt
    assert set(sample.targets[: len(prompt)]) == {IGNORED}


def test_every_assistant_turn_is_learned(tokenizer: Any) -> None:
    sample = encode(tokenizer, talk("one", "first", "two", "second"))
    assert learned(tokenizer, sample) == "first<|im_end|>second<|im_end|>"


def test_what_looks_like_a_role_in_the_text_is_not_learned(tokenizer: Any) -> None:
    sample = encode(tokenizer, talk("assistant\nsay yes", "no"))
    assert learned(tokenizer, sample) == "no<|im_end|>"


def test_a_template_that_rewrites_turns_is_refused(tiny_model: Path) -> None:
    odd = AutoTokenizer.from_pretrained(tiny_model)
    odd.chat_template = "{{ messages | length }}" + tiny.TEMPLATE
    with pytest.raises(TrainingError, match="turn by turn"):
        encode(odd, talk("one", "first", "two", "second"))
    odd.chat_template = None
    with pytest.raises(TrainingError, match="no chat template"):
        encode(odd, talk("one", "first"))


def test_long_examples_are_an_error_unless_told_to_drop_them(tokenizer: Any) -> None:
    rows = [talk("short", "a"), talk("long " * 100, "b")]
    rows[1] = rows[1].model_copy(update={"id": "line 9"})
    with pytest.raises(TrainingError, match=r"example 'line 9' has .* max_length 64"):
        encode_all(tokenizer, rows, 64, drop_long=False)
    assert len(encode_all(tokenizer, rows, 64, drop_long=True)) == 1
    with pytest.raises(TrainingError, match="all 1 examples"):
        encode_all(tokenizer, rows[1:], 64, drop_long=True)


def test_a_batch_holds_the_common_beginning_once(tokenizer: Any) -> None:
    samples = [encode(tokenizer, example) for example in tiny.examples(6)]
    batch = collate(samples, pad_id=0)
    shared = batch.prefix.shape[1]
    assert shared >= chat.MIN_SHARED
    assert batch.tokens == sum(len(sample.ids) for sample in samples)
    for row, sample in enumerate(samples):
        rest = len(sample.ids) - shared
        assert (*batch.prefix[0].tolist(), *batch.ids[row, :rest].tolist()) == sample.ids
        assert tuple(batch.targets[row, :rest].tolist()) == sample.targets[shared:]
        assert set(batch.targets[row, rest:].tolist()) <= {IGNORED}
        assert batch.targets[row, 0] == IGNORED


def test_identical_prompts_keep_the_token_before_the_answer_to_themselves(tokenizer: Any) -> None:
    sample = encode(tokenizer, tiny.examples(1)[0])
    batch = collate([sample, sample], pad_id=0)
    assert batch.targets[0, 0] == IGNORED
    assert (batch.targets[0] != IGNORED).sum() == sample.learned

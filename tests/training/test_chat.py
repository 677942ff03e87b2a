from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from factory.training import chat
from factory.training.chat import IGNORED, collate, encode, encode_all, passes
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
    batch = collate(samples, [10, 11, 12, 13, 14, 15])
    shared = batch.layout.shared
    assert shared >= chat.MIN_SHARED
    assert batch.tokens == sum(len(sample.ids) for sample in samples)
    assert batch.ids.shape[1] == batch.tokens - 5 * shared
    at = shared
    for row, sample in enumerate(samples):
        rest = slice(at, at + len(sample.ids) - shared)
        at = rest.stop
        whole = (*batch.ids[0, :shared].tolist(), *batch.ids[0, rest].tolist())
        assert whole == sample.ids
        assert batch.positions[0, rest].tolist() == list(range(shared, len(sample.ids)))
        mine = batch.row == row
        assert batch.learned.example[mine].tolist() == [10 + row] * sample.learned
        assert batch.learned.place[mine].tolist() == list(range(sample.learned))
        wanted = batch.learned.wanted[mine]
        assert tuple(wanted.tolist()) == tuple(item for item in sample.targets if item != IGNORED)
        assert batch.ids[0, batch.at[mine] + 1].tolist() == wanted.tolist()


def test_identical_prompts_keep_the_token_before_the_answer_to_themselves(tokenizer: Any) -> None:
    sample = encode(tokenizer, tiny.examples(1)[0])
    batch = collate([sample, sample])
    assert (batch.at >= batch.layout.shared).all()
    assert len(batch.at.unique()) == len(batch.at) == 2 * sample.learned


def test_a_step_is_cut_where_it_has_too_many_tokens(tokenizer: Any) -> None:
    samples = [encode(tokenizer, example) for example in tiny.examples(7)]
    longest = max(len(sample.ids) for sample in samples)
    whole = passes(samples, range(7), 10_000)
    cut = passes(samples, range(7), 2 * longest)
    single = passes(samples, range(7), 1)
    assert (len(whole), len(single)) == (1, 7)
    assert 3 <= len(cut) <= 6
    assert all(batch.tokens <= 2 * longest for batch in cut)
    for batches in (cut, single):
        seen = torch.cat([batch.learned.example for batch in batches])
        assert torch.equal(seen, whole[0].learned.example)

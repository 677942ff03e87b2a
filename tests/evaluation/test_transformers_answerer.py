from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.evaluation.harness import run
from factory.evaluation.results import EvaluationError
from factory.evaluation.suite import Case, Suite
from factory.evaluation.transformers_answerer import (
    TransformersAnswerer,
    folder_hash,
    shared_prefix,
)


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter strong enough to change what the tiny model says."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def one_by_one(folder: Path, suite: Suite, tokens: int) -> list[str]:
    """Plain greedy decoding without batch, padding or shared prefix."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for case in suite.cases:
        text = tokenizer.apply_chat_template(case.chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=1)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_batches_answer_as_plain_decoding_does(
    tiny_model: Path, suite: Suite, batch_size: int
) -> None:
    results = run(suite, TransformersAnswerer(tiny_model, batch_size=batch_size))
    assert [case.answer for case in results.cases] == one_by_one(tiny_model, suite, 8)
    assert all(0 < (case.confidence or 0) <= 1 for case in results.cases)
    assert all(1 <= case.completion_tokens <= 8 for case in results.cases)


def test_prompt_tokens_are_those_of_the_template(tiny_model: Path, suite: Suite) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    case = run(suite, TransformersAnswerer(tiny_model)).cases[0]
    text = tokenizer.apply_chat_template(
        suite.cases[0].chat, tokenize=False, add_generation_prompt=True
    )
    assert case.prompt_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_an_adapter_changes_answers_and_identity(
    tiny_model: Path, adapter: Path, suite: Suite
) -> None:
    bare, tuned = TransformersAnswerer(tiny_model), TransformersAnswerer(tiny_model, adapter)
    answers = [[case.answer for case in run(suite, who).cases] for who in (bare, tuned)]
    assert answers[0] != answers[1]
    assert bare.identity.model_hash == tuned.identity.model_hash
    assert bare.identity.adapter_hash is None
    assert tuned.identity.adapter_hash == folder_hash(adapter)
    assert "peft" in tuned.identity.versions


def test_confidence_is_the_geometric_mean_probability(tiny_model: Path, suite: Suite) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    short = Suite.build(
        name="one", version=1, labels=("json",), max_new_tokens=1, cases=suite.cases[:1]
    )
    text = tokenizer.apply_chat_template(
        short.cases[0].chat, tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        likeliest = model(ids).logits[0, -1].softmax(-1).max().item()
    found = run(short, TransformersAnswerer(tiny_model)).cases[0]
    assert found.confidence == pytest.approx(likeliest, rel=1e-4)


@pytest.mark.parametrize("limit", [None, 64])
def test_a_prompt_longer_than_the_context_names_its_case(
    tiny_model: Path, suite: Suite, limit: int | None
) -> None:
    turns = [{"role": "user", "content": "word " * 600}]
    long = Case.model_validate({"id": "os.long", "messages": turns, "expected": "os"})
    header = suite.header.model_dump()
    both = Suite.build(cases=(*suite.cases[:3], long), **header)
    with pytest.raises(EvaluationError, match=r"case 'os\.long' of suite 'small' has \d+ tokens"):
        run(both, TransformersAnswerer(tiny_model, max_model_len=limit and limit * 4))


def test_incomplete_folders_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"has no config\.json"):
        TransformersAnswerer(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(EvaluationError, match=r"has no adapter_model\.safetensors"):
        TransformersAnswerer(tiny_model, tmp_path)


def test_an_adapter_of_another_base_is_refused(
    tiny_model: Path, suite: Suite, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match="does not fit this base model"):
        run(suite, TransformersAnswerer(tiny_model, tmp_path))


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_shared_prefix_leaves_every_prompt_a_token(prompts: list[list[int]]) -> None:
    found = shared_prefix(prompts)
    assert all(len(prompt) > len(found) and prompt[: len(found)] == found for prompt in prompts)


@pytest.mark.engine
def test_the_real_model_answers(model_dir: Path, suite: Suite) -> None:
    asked = [
        ("Is a whale a fish? Answer yes or no.", "no"),
        ("What is the capital of France? Answer with one word.", "paris"),
    ]
    cases = [
        Case.model_validate(
            {"id": text, "messages": [{"role": "user", "content": text}], "expected": expected}
        )
        for text, expected in asked
    ]
    suite = Suite.build(name="real", version=1, labels=("no", "paris"), cases=cases)
    results = run(suite, TransformersAnswerer(model_dir))
    assert results.cases[1].score
    assert all(case.answer and case.completion_tokens <= 8 for case in results.cases)

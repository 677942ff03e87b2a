"""A complete model folder small enough to train in milliseconds, and a data set it can learn."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from factory.training import dataset
from factory.training.dataset import Example, Turn

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = "Which Python module is described? Answer with one of: json, os, email, ssl and no more."
WORDS = {
    "json": "serialise decode object",
    "os": "process file descriptor",
    "email": "header message mime",
    "ssl": "certificate cipher socket",
}


def model(folder: Path, hidden: int = 32) -> Path:
    """Write a two-layer Llama with random weights and a byte-level tokenizer."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([SYSTEM, *WORDS, *WORDS.values()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def examples(count: int) -> list[Example]:
    """`count` different conversations over four labels, of different lengths."""
    rows = []
    for number in range(count):
        label = list(WORDS)[number % len(WORDS)]
        text = f"{WORDS[label]} " * (1 + number % 3) + f"number {number}"
        turns = (
            Turn(role="system", content=SYSTEM),
            Turn(role="user", content=text),
            Turn(role="assistant", content=label),
        )
        rows.append(Example(messages=turns, id=f"{label}.{number}", group=str(number), label=label))
    return rows


def data(folder: Path, train: int = 48, validation: int = 8) -> Path:
    """Write a data set folder."""
    rows = examples(train + validation)
    split = {"train": rows[:train], "validation": rows[train:]}
    folder.mkdir(parents=True, exist_ok=True)
    dataset.write(folder, split, dataset.card(split, name="tiny"))
    return folder

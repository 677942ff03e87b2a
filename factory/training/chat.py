"""Conversations as tokens, with a target for every token the assistant says.

    sample = encode(tokenizer, example)
    batch = collate([sample, other])

The tokenizer's own chat template renders a conversation. What lies between the prompt (with its
generation prompt) and the end of the assistant's turn is learned, the end marker included, and
is tokenized apart from the prompt, as it is when a server generates it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from factory.training.dataset import Example
from factory.training.errors import TrainingError
from factory.training.loss import Learned
from factory.training.packing import Layout

IGNORED = -100
"""The target of a token that is not learned."""

MIN_SHARED = 16
"""A common beginning shorter than this is not worth a pass of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of one conversation, and the same with `IGNORED` where nothing is learned."""

    id: str
    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def learned(self) -> int:
        """Number of tokens that are learned; nothing comes before the first, so it is not."""
        return sum(target != IGNORED for target in self.targets[1:])


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations packed into one row of `n` tokens: a shared beginning once, then the rests."""

    ids: torch.Tensor
    """Token ids, `[1, n]`."""
    positions: torch.Tensor
    """Place of each token in its own conversation, `[1, n]`."""
    layout: Layout
    at: torch.Tensor
    """Where in the row the next token is learned."""
    learned: Learned
    """What is learned there."""
    row: torch.Tensor
    """Which conversation of the batch each learned token belongs to."""
    size: int
    """Conversations."""
    tokens: int
    """Tokens of all conversations, the shared beginning counted in each."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        learned = self.learned
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            layout=self.layout.to(device),
            at=self.at.to(device),
            learned=Learned(
                learned.wanted.to(device), learned.example.to(device), learned.place.to(device)
            ),
            row=self.row.to(device),
        )


def template_hash(folder: Path) -> str:
    """Hex sha256 of a weights folder's chat template, which serving must share with tuning.

    Empty where the folder has no template.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        facts = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    text = facts.get("chat_template") if isinstance(facts, dict) else None
    return hashlib.sha256(json.dumps(text).encode()).hexdigest() if text else ""


def encode(tokenizer: Any, example: Example) -> Sample:
    """The sample of one example.

    Raises `TrainingError` when the tokenizer has no chat template or the template rewrites
    earlier turns, so that the assistant's words cannot be told apart.
    """
    if not tokenizer.chat_template:
        raise TrainingError(
            "the model's tokenizer has no chat template; use an instruct model or add one"
        )
    chat = example.chat
    full = _render(tokenizer, chat)
    ids: list[int] = []
    targets: list[int] = []
    position = 0
    for index, turn in enumerate(chat):
        if turn["role"] != "assistant":
            continue
        prompt = _render(tokenizer, chat[:index], add_generation_prompt=True)
        spoken = _render(tokenizer, chat[: index + 1])
        if not (full.startswith(spoken) and spoken.startswith(prompt)):
            raise TrainingError(
                f"example '{example.id}': the chat template does not render a conversation turn "
                "by turn, so the assistant's words cannot be told from the prompt; "
                "use single-turn examples or another template"
            )
        end = len(spoken.rstrip("\n"))
        before = _tokens(tokenizer, full[position : len(prompt)])
        answer = _tokens(tokenizer, full[len(prompt) : end])
        ids += before + answer
        targets += [IGNORED] * len(before) + answer
        position = end
    return Sample(example.id, tuple(ids), tuple(targets))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int, drop_long: bool
) -> list[Sample]:
    """The samples of a split, those longer than `max_length` tokens left out or refused.

    Raises `TrainingError` naming the first example that is too long, or when none is left.
    """
    samples = [encode(tokenizer, example) for example in examples]
    long = [sample for sample in samples if len(sample.ids) > max_length]
    if long and not drop_long:
        raise TrainingError(
            f"example '{long[0].id}' has {len(long[0].ids)} tokens and {len(long)} of "
            f"{len(samples)} examples are longer than max_length {max_length}; raise max_length, "
            "or set drop_long to leave them out"
        )
    kept = [sample for sample in samples if len(sample.ids) <= max_length]
    if not kept:
        raise TrainingError(
            f"all {len(samples)} examples are longer than max_length {max_length}; raise it"
        )
    return kept


def collate(samples: Sequence[Sample], indices: Sequence[int] | None = None) -> Batch:
    """One batch of at least one sample; `indices` say where each stands in its split."""
    indices = range(len(samples)) if indices is None else indices
    shared = _shared(samples)
    ids = list(samples[0].ids[:shared])
    positions = list(range(shared))
    learned: list[tuple[int, int, int, int, int]] = []
    for row, (sample, index) in enumerate(zip(samples, indices, strict=True)):
        offset = len(ids) - shared
        ids += sample.ids[shared:]
        positions += range(shared, len(sample.ids))
        targets = [at for at, target in enumerate(sample.targets) if at and target != IGNORED]
        learned += [
            (offset + at - 1, sample.targets[at], index, place, row)
            for place, at in enumerate(targets)
        ]
    at, wanted, example, place, rows = torch.tensor(learned).T.contiguous().unbind()
    return Batch(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        layout=Layout.of([len(sample.ids) - shared for sample in samples], shared),
        at=at,
        learned=Learned(wanted, example, place),
        row=rows,
        size=len(samples),
        tokens=sum(len(sample.ids) for sample in samples),
    )


def passes(samples: Sequence[Sample], indices: Sequence[int], max_tokens: int) -> list[Batch]:
    """The samples of one step as batches of at most `max_tokens` tokens, at least one sample each.

    Their losses add up, so how they are cut changes memory and speed, not what is learned.
    """
    cuts: list[list[int]] = []
    room = 0
    for at, sample in enumerate(samples):
        if not cuts or room < len(sample.ids):
            cuts.append([])
            room = max_tokens
        cuts[-1].append(at)
        room -= len(sample.ids)
    return [collate([samples[at] for at in part], [indices[at] for at in part]) for part in cuts]


def _shared(samples: Sequence[Sample]) -> int:
    """Length of the common beginning, with at least one unlearned token left to each sample."""
    if len(samples) < 2:
        return 0
    columns = zip(*(sample.ids for sample in samples), strict=False)
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    first = min(
        next(at for at, target in enumerate(sample.targets) if at and target != IGNORED)
        for sample in samples
    )
    shared = min(same, first - 1)
    return shared if shared >= MIN_SHARED else 0


def _render(tokenizer: Any, chat: Sequence[dict[str, str]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(list(chat), tokenize=False, **options)
    return text


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids

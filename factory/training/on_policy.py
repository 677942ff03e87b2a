"""Learning from a teacher on the student's own answers.

    objective = OnPolicy(student, teacher, data.train, trusted, config, stops, autocast)
    fit(..., objective=lambda student: objective)

With probability `lmbda` a batch's prompts are answered by the student as it is now, up to
`max_new_tokens`, and the teacher says at every token of these answers what it would have said; for
any other batch it says so at the data's answers. This is generalized knowledge distillation
(Agarwal et al. 2024, arXiv:2306.13649, algorithm 1): the student learns where its own mistakes
lead. The teacher is held in memory and nothing is cached, since no answer comes twice.

Answers are drawn from PyTorch's global generator, which checkpoints keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from factory.training import packing
from factory.training.chat import IGNORED, Batch, Sample, collate
from factory.training.distillation import FromTeacher
from factory.training.divergence import Kind
from factory.training.objective import Objective
from factory.training.teaching import teach


class OnPolicy(nn.Module):
    """An objective over the examples of one train split, with the teacher at hand."""

    def __init__(
        self,
        model: Any,
        teacher: Any,
        samples: Sequence[Sample],
        trusted: Sequence[bool],
        *,
        vocabulary: int,
        stops: Collection[int],
        lmbda: float,
        max_new_tokens: int,
        top_k: int,
        kind: Kind,
        temperature: float,
        ce_weight: float,
        beta: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        """`samples` and `trusted` have one entry an example, in the order of the split.

        `vocabulary` is what both tokenizers share, `stops` end an answer and are part of it. The
        loss at a token is that of `FromTeacher`, and cross-entropy counts only where the data's
        own answer is trusted.
        """
        super().__init__()
        self.model = model
        self._teacher = (teacher,)  # hidden from `parameters()`: it is not trained
        self._samples, self._trusted = samples, trusted
        self._vocabulary, self._stops = vocabulary, sorted(stops)
        self._lmbda, self._max_new_tokens, self._top_k = lmbda, max_new_tokens, top_k
        self._kind, self._temperature = kind, temperature
        self._ce_weight, self._beta = ce_weight, beta
        self._autocast = autocast

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Objective`: a sum over as many tokens as the batch learns, and hits by example.

        The student's answers may be longer or shorter than the data's. The loss is scaled, so
        that divided by the number of the batch's learned tokens it is a mean over tokens.
        """
        rows = dict(zip(batch.row.tolist(), batch.learned.example.tolist(), strict=True))
        indices = [rows[row] for row in range(batch.size)]
        samples = [self._samples[index] for index in indices]
        trusted = [self._trusted[index] for index in indices]
        if torch.rand(()).item() < self._lmbda:
            samples = self.answered(samples)
            trusted = [False] * len(samples)
        said = teach(
            self._teacher[0],
            samples,
            vocabulary=self._vocabulary,
            k=self._top_k,
            temperature=self._temperature,
        )
        loss = FromTeacher(
            said,
            trusted,
            kind=self._kind,
            temperature=self._temperature,
            ce_weight=self._ce_weight,
            beta=self._beta,
        )
        objective = Objective(self.model, loss, self._autocast)
        total, hits = objective(collate(samples).to(batch.ids.device))
        return total * (len(batch.learned.wanted) / sum(one.learned for one in samples)), hits

    def answered(self, samples: Sequence[Sample]) -> list[Sample]:
        """The same conversations, the last turn of each replaced by what the student says now."""
        prompts = [prompt(sample) for sample in samples]
        shared = _common(prompts)
        width = max(map(len, prompts))
        pad = self._stops[0]
        gaps = [width - len(one) for one in prompts]
        rows = [
            [*one[:shared], *[pad] * gap, *one[shared:]]
            for one, gap in zip(prompts, gaps, strict=True)
        ]
        device = self.model.device
        mask = torch.ones(len(rows), width, dtype=torch.long, device=device)
        for row, gap in enumerate(gaps):
            mask[row, shared : shared + gap] = 0
        with self._answering() as causal:
            out = causal.generate(
                torch.tensor(rows, device=device),
                attention_mask=mask,
                past_key_values=self._beginning(causal, prompts[0][:shared], len(rows)),
                max_new_tokens=self._max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=self._stops,
                pad_token_id=pad,
            )
        found = []
        for sample, one, said in zip(samples, prompts, out[:, width:].tolist(), strict=True):
            end = next((at for at, token in enumerate(said) if token in self._stops), len(said))
            answer = tuple(said[: end + 1])
            targets = (IGNORED,) * len(one) + answer
            found.append(Sample(sample.id, (*one, *answer), targets))
        return found

    @contextlib.contextmanager
    def _answering(self) -> Iterator[Any]:
        """The student as it generates: no dropout, no gradient, attention that reads a cache."""
        causal = getattr(self.model, "get_base_model", lambda: self.model)()
        training = self.model.training
        self.model.eval()
        causal.set_attn_implementation("sdpa")
        try:
            with torch.no_grad(), self._precision():
                yield causal
        finally:
            causal.set_attn_implementation(packing.NAME)
            self.model.train(training)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, dtype=self._autocast)

    def _beginning(self, causal: Any, tokens: Sequence[int], rows: int) -> Any:
        """Keys and values of what all prompts begin with, computed once; None without any."""
        from transformers import DynamicCache

        if not tokens:
            return None
        ids = torch.tensor([list(tokens)], device=causal.device)
        cache = DynamicCache(config=causal.config)
        cache = causal(ids, past_key_values=cache, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(rows)
        return cache


def prompt(sample: Sample) -> tuple[int, ...]:
    """The tokens of a conversation before the last turn that is learned."""
    targets = sample.targets
    end = max(at for at, target in enumerate(targets) if target != IGNORED)
    while end and targets[end - 1] != IGNORED:
        end -= 1
    return sample.ids[:end]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Length of what all prompts begin with, leaving each at least one token of its own."""
    if len(prompts) < 2:
        return 0
    columns = zip(*(one[:-1] for one in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))

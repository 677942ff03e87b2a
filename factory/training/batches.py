"""Which examples a step trains on: a pure function of the seed and the step number.

    sampler = Sampler(lengths=[31, 12, ...], batch_size=8, accumulation=1, workers=2, seed=7)
    sampler.step(40)        # [[batch of worker 0, batch of worker 1], ...] one row a micro-batch

Because nothing but the step number is needed, a resumed run sees exactly the data that an
uninterrupted one would have seen. Batches hold examples of similar length: a shuffled epoch is
cut into windows, each window is sorted by length and cut into batches, and their order is
shuffled again.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

WINDOW = 8
"""Batches in a window that is sorted by length."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An endless, seeded order over examples of known length."""

    lengths: tuple[int, ...]
    batch_size: int
    accumulation: int
    workers: int
    seed: int

    @property
    def across(self) -> int:
        """Examples of one micro-batch over all workers."""
        return self.batch_size * self.workers

    @property
    def per_epoch(self) -> int:
        """Micro-batches of one epoch; the last is filled up from the epoch's beginning."""
        return -(-len(self.lengths) // self.across)

    def step(self, number: int) -> list[list[list[int]]]:
        """Indices for optimizer step `number` (from 0), by micro-batch and worker."""
        first = number * self.accumulation
        return [self._micro(first + offset) for offset in range(self.accumulation)]

    def epoch(self, step: int) -> float:
        """Passes over the data that are complete before `step`."""
        return step * self.accumulation / self.per_epoch

    def _micro(self, number: int) -> list[list[int]]:
        epoch, position = divmod(number, self.per_epoch)
        batch = _epoch(self, epoch)[position]
        return [list(batch[worker :: self.workers]) for worker in range(self.workers)]


@functools.lru_cache(maxsize=2)
def _epoch(sampler: Sampler, epoch: int) -> tuple[tuple[int, ...], ...]:
    shuffle = random.Random(f"{sampler.seed}:{epoch}").shuffle
    order = list(range(len(sampler.lengths)))
    shuffle(order)
    wanted = sampler.per_epoch * sampler.across
    order = (order * -(-wanted // len(order)))[:wanted]
    window = WINDOW * sampler.across
    batches = []
    for start in range(0, wanted, window):
        part = sorted(order[start : start + window], key=lambda index: sampler.lengths[index])
        batches += [
            tuple(part[at : at + sampler.across]) for at in range(0, len(part), sampler.across)
        ]
    shuffle(batches)
    return tuple(batches)

"""The training loop: on one worker or many, resumable at any checkpoint.

    summary = fit(config, model, data, run, fingerprint, Peers())
    summary = fit(..., objective=lambda model: Objective(model, another_loss))

Every worker knows the whole data set and the whole order, so each can tell how many tokens the
global step learns, and the gradient is the exact mean over all of them, however they are spread
over workers and accumulation. Sums over workers decide everything that depends on time or on the
loss, so that all workers always take the same turn.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from factory.training import adapter, checkpoint
from factory.training.batches import Sampler
from factory.training.chat import Batch, Sample, collate, passes
from factory.training.checkpoint import Counters, State
from factory.training.config import TrainConfig
from factory.training.errors import Interrupted, TrainingError
from factory.training.loss import CrossEntropy
from factory.training.objective import Objective
from factory.training.run import RunFolder
from factory.training.schedule import Schedule
from factory.training.update import Update, Whole
from factory.training.zero import Zero

_MEMORY = 0.9
"""Weight of the past in the running mean of the loss."""

_DIVERGED = 1.5
"""How far above a random guess (and above the run's own best) a mean loss means divergence."""


@dataclass(frozen=True, slots=True)
class Peers:
    """The workers of a run, seen from one of them. The default is a worker alone."""

    rank: int = 0
    size: int = 1
    sum: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    gather: Callable[[torch.Tensor], list[torch.Tensor]] = lambda tensor: [tensor]
    distribute: Callable[[nn.Module], nn.Module] = lambda module: module
    saved: Callable[[Counters], None] = lambda _: None
    """Told when a checkpoint is on its way to disk."""
    notice: Callable[[], str | None] = lambda: None
    """Why this place must be left soon, or None; the same answer on every worker."""
    place: str = ""
    """Name of the node, for the record."""
    since: float | None = None
    """When this process began to load libraries, model and data, on the monotonic clock."""
    load_s: float = 0.0
    """Seconds that loading model and data took, for the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Encoded splits."""

    train: Sequence[Sample]
    validation: Sequence[Sample]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run came to."""

    steps: int
    resumed_from: int
    train_loss: float
    """Running mean of the loss per learned token."""
    tokens: int
    seconds: float
    tokens_per_s: float
    """Tokens of the examples per second; a shared beginning counts once an example."""
    epochs: float
    validation_loss: float | None
    validation_accuracy: float | None
    """Share of sampled examples whose learned tokens are all the likeliest ones."""
    stopped: str
    """Why training ended."""
    lost: int = 0
    """Steps that were trained again because no checkpoint held them, over all starts."""
    damaged: tuple[str, ...] = ()
    """Checkpoints that were passed over on resuming, and what is wrong with them."""


def fit(
    config: TrainConfig,
    model: Any,
    data: Data,
    run: RunFolder,
    fingerprint: str,
    peers: Peers,
    clock: Callable[[], float] = time.monotonic,
    objective: Callable[[Any], nn.Module] | None = None,
) -> Summary:
    """Train what is trainable in `model` from the run's newest good checkpoint, or from the start.

    `objective` makes the module that is trained from the model; its forward takes a `Batch` of
    the train split and returns a loss summed over learned tokens, and a hit by example. The
    validation split is always scored with plain cross-entropy. The model ends trained; the run
    folder holds checkpoints and the curve.
    Raises `TrainingError` for a loss that is no number or far from where it began, a run started
    with other arguments, and a run that would not take a single step; `Interrupted` when the
    place must be left, after a checkpoint.
    """
    if not data.train:
        raise TrainingError("the train split is empty; there is nothing to learn")
    loop = _Loop(config, model, data, run, fingerprint, peers, clock, objective)
    try:
        return loop.go()
    finally:
        loop.writer.close()


class _Loop:
    def __init__(
        self,
        config: TrainConfig,
        model: Any,
        data: Data,
        run: RunFolder,
        fingerprint: str,
        peers: Peers,
        clock: Callable[[], float],
        objective: Callable[[Any], nn.Module] | None,
    ) -> None:
        self.config, self.data, self.run, self.peers, self.clock = config, data, run, peers, clock
        self.fingerprint = fingerprint
        self.writer = checkpoint.Writer(
            run.checkpoints, config.save_total_limit, config.checkpoint_url
        )
        self.trained = adapter.trainable(model)
        plain = Objective(model, CrossEntropy(config.label_smoothing_factor), precision(config))
        module = objective(model) if objective else plain
        self.update: Update
        if config.zero_stage:
            self.update = Zero(module, self.trained, config)
        else:
            self.update = Whole(module, self.trained, config, peers.distribute)
        self.model = model
        self.device = next(iter(self.trained.values())).device
        self.vocabulary = int(model.config.vocab_size)
        self.schedule = Schedule.plan(config, len(data.train))
        self.sampler = Sampler(
            lengths=tuple(len(sample.ids) for sample in data.train),
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            workers=config.most_workers,
            seed=config.seed,
        )
        torch.manual_seed(config.seed + peers.rank)

    def go(self) -> Summary:
        now, damaged = self._resume()
        first = now
        start = self.clock() - now.elapsed
        self.update.module.train()
        saved = now.step
        while (stopped := self.schedule.done(now.step, now.elapsed)) is None:
            now = self._step(now, start)
            notice = self.peers.notice()
            if notice or now.step % self.config.save_steps == 0:
                self._save(now)
                saved = now.step
            if notice:
                self.writer.flush()
                if self.peers.rank == 0:
                    self.run.leave(time.time())
                raise Interrupted(now.step, notice)
        if now.step == 0:
            raise TrainingError("no optimizer step was taken; give more steps or more time")
        if saved != now.step:
            self._save(now)
        self.writer.flush()
        loss, accuracy = self._validate()
        return Summary(
            steps=now.step,
            resumed_from=first.step,
            train_loss=now.recent_loss,
            tokens=now.tokens,
            seconds=now.elapsed,
            tokens_per_s=now.tokens / now.elapsed if now.elapsed else 0.0,
            epochs=self.sampler.epoch(now.step),
            validation_loss=loss,
            validation_accuracy=accuracy,
            stopped=stopped,
            lost=sum(start["lost"] for start in self.run.starts()),
            damaged=damaged,
        )

    def _resume(self) -> tuple[Counters, tuple[str, ...]]:
        folder = self.run.checkpoints
        damaged: tuple[str, ...] = ()
        if self.config.checkpoint_url:
            damaged = checkpoint.fetch(folder, self.config.checkpoint_url)
        state, here = checkpoint.newest(folder)
        damaged += here
        now = state.counters if state else Counters()
        if state is not None:
            if state.fingerprint != self.fingerprint:
                raise TrainingError(
                    f"run '{self.run.root.name}' was started with other arguments, other data or "
                    "another model; give the same ones to resume it, or another --run-name"
                )
            self.update.restore(state)
            checkpoint.restore_random(state, self.peers.rank, self.config.seed)
        if self.peers.rank == 0:
            lost = self.run.rewind(now.step)
            checkpoint.discard_after(folder, now.step)
            self.run.started(
                {
                    "at": time.time(),
                    "place": self.peers.place,
                    "resumed_from": now.step,
                    "lost": lost,
                    "workers": self.peers.size,
                    "load_s": self.peers.load_s,
                    "left_at": self.run.left(),
                }
            )
        return now, damaged

    def _step(self, now: Counters, start: float) -> Counters:
        rate = self.config.learning_rate * self.schedule.factor(now.step, now.elapsed)
        micro = self.sampler.step(now.step)
        learned = sum(
            self.data.train[index].learned for row in micro for part in row for index in part
        )
        loss_sum, tokens = 0.0, 0
        batches = self._passes(micro)
        for batch in batches:
            with self.update.waiting(last=batch is batches[-1]):
                loss, _ = self.update.module(batch.to(self.device))
                self.update.backward(loss * self.peers.size / learned)
            loss_sum += loss.item()
            tokens += batch.tokens
        clock = self.clock() - start if self.peers.rank == 0 else 0.0
        sums = torch.tensor([loss_sum, float(tokens), clock], dtype=torch.float64)
        loss_sum, tokens_sum, elapsed = self.peers.sum(sums).tolist()
        mean = loss_sum / learned
        recent = mean if now.step == 0 else _MEMORY * now.recent_loss + (1 - _MEMORY) * mean
        if now.step and recent > _DIVERGED * max(math.log(self.vocabulary), now.best_loss):
            raise TrainingError(
                f"the run has diverged: its loss is {recent:.2f}, where guessing at random would "
                f"give {math.log(self.vocabulary):.2f}, at step {now.step + 1}; lower learning_rate"
            )
        norm = self.update.step(rate)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is {mean} and the gradient {norm} at step {now.step + 1}; "
                "lower learning_rate, or look for broken examples"
            )
        after = Counters(
            step=now.step + 1,
            elapsed=elapsed,
            tokens=now.tokens + int(tokens_sum),
            recent_loss=recent,
            best_loss=recent if now.step == 0 else min(now.best_loss, recent),
        )
        self._record(after, mean, rate, norm)
        return after

    def _passes(self, micro: list[list[list[int]]]) -> list[Batch]:
        """This worker's share of a step; fewer workers than planned take several shares each."""
        rank, size = self.peers.rank, self.peers.size
        shares = [part for row in micro for part in row[rank::size]]
        if self.config.zero_stage:  # every worker must make the same number of passes
            return [collate([self.data.train[at] for at in part], part) for part in shares]
        mine = [index for part in shares for index in part]
        return passes([self.data.train[at] for at in mine], mine, self.config.max_tokens)

    def _record(self, now: Counters, loss: float, rate: float, norm: float) -> None:
        ends = self.schedule.done(now.step, now.elapsed) is not None
        if self.peers.rank or not (
            now.step == 1 or ends or now.step % self.config.logging_steps == 0
        ):
            return
        self.run.append(
            {
                "step": now.step,
                "loss": loss,
                "recent_loss": now.recent_loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "epoch": self.sampler.epoch(now.step),
                "tokens": now.tokens,
                "tokens_per_s": now.tokens / now.elapsed if now.elapsed else 0.0,
                "elapsed": now.elapsed,
                "progress": self.schedule.progress(now.step, now.elapsed),
                "remaining_s": self.schedule.remaining_seconds(now.step, now.elapsed),
            }
        )

    def _save(self, now: Counters) -> None:
        states = self.peers.gather(torch.get_rng_state())
        rng = {str(rank): item for rank, item in enumerate(states)}
        if self.device.type == "cuda":
            states = self.peers.gather(torch.cuda.get_rng_state())
            rng |= {f"cuda.{rank}": item for rank, item in enumerate(states)}
        if self.peers.rank == 0 or self.config.zero_stage:
            state = State(
                counters=now,
                fingerprint=self.fingerprint,
                weights=self.update.weights(),
                optimizer=self.update.moments(),
                rng=checkpoint.held(rng),
            )
            if self.peers.rank == 0:
                self.writer.write(state)
        self.peers.saved(now)

    def _validate(self) -> tuple[float | None, float | None]:
        if self.peers.rank or self.config.zero_stage:
            return None, None
        return validate(self.config, self.model, self.data.validation)


@torch.no_grad()
def validate(
    config: TrainConfig, model: Any, samples: Sequence[Sample]
) -> tuple[float | None, float | None]:
    """Loss per learned token and share of right examples, on a seeded choice of the samples."""
    wanted = min(config.eval_samples, len(samples))
    if not wanted:
        return None, None
    module = Objective(model, CrossEntropy(), precision(config)).eval()
    device = next(model.parameters()).device
    chosen = random.Random(config.seed).sample(list(samples), wanted)
    chosen.sort(key=lambda sample: len(sample.ids))
    total, right = 0.0, 0
    size = config.per_device_train_batch_size
    for at in range(0, wanted, size):
        loss, hits = module(collate(chosen[at : at + size]).to(device))
        total += loss.item()
        right += int(hits.sum())
    return total / sum(sample.learned for sample in chosen), right / wanted


def precision(config: TrainConfig) -> torch.dtype | None:
    """What full tuning computes in beside its float32 weights; an adapter's base has its own."""
    return torch.bfloat16 if config.bf16 and not config.use_peft else None

"""What a run will take, before anything starts: parameters, tokens, memory, time and dollars.

    shape = measure(folder, config)                       # on no memory at all
    work = workload(config, shape, samples)
    estimate(config, shape, work, flops_per_core=9e10, cores=2, pools=settings.pools)

Counting is exact for parameters and tokens. Time is arithmetic over a rate: this machine's is
measured on a matrix product, a GPU's is its data sheet's dense bfloat16 rate; both times the share
that tuning reached in our own runs. Memory is the sum of what is held. Take time and memory as
good to a factor of one and a half.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factory.config.pools import OwnPool, RentedPool
from factory.training import adapter
from factory.training.batches import Sampler
from factory.training.chat import Sample, passes
from factory.training.config import TrainConfig
from factory.training.errors import TrainingError
from factory.training.loss import CHUNK
from factory.training.schedule import Schedule

EFFICIENCY = 0.45
"""Share of a plain matrix product's rate that tuning reaches on a CPU (docs/benchmarks.md)."""

GPU_EFFICIENCY = 0.30
"""The same against a GPU's data sheet; a cautious figure from others' reports, not run here."""

GPU_TFLOPS = {
    "T4": 65,
    "V100": 125,
    "L4": 121,
    "A10G": 70,
    "A100": 312,
    "L40S": 362,
    "H100": 989,
    "H200": 989,
}
"""Dense 16-bit tensor rate from the makers' data sheets, by the name Ray labels a GPU with."""

_RUNTIME_BYTES = 700_000_000
"""Python, PyTorch and transformers themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model as a run will hold it."""

    parameters: int
    trainable: int
    in_layers: int
    """Parameters of the layers' matrices, which every token passes."""
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What a run has to compute."""

    examples: int
    steps: int | None
    """None where a budget of seconds ends the run."""
    tokens: int
    """Tokens of the examples over the whole run, 0 where `steps` is None."""
    rows: int
    """The same with shared beginnings counted once a batch."""
    learned: int
    largest_pass: int
    """Most tokens that go through the model at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What another model computes and holds in the same run: a teacher."""

    flops: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a run takes in one pool."""

    pool: str
    hours: float
    nusd: int
    """Nano-dollars, every worker's node counted from its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will take."""

    method: str
    shape: Shape
    workload: Workload
    memory_bytes: int
    """At the highest, of one worker."""
    seconds: float
    """On this machine."""
    places: tuple[Place, ...]
    """By pool, the cheapest first."""


def measure(folder: Path, config: TrainConfig) -> Shape:
    """The shape of a weights folder's model under these arguments. Raises `TrainingError`."""
    try:
        facts = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(facts)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"cannot read the base model's config in '{folder}': {error}"
        ) from error
    total = sum(item.numel() for item in base.parameters())
    outside = {id(item) for item in base.get_input_embeddings().parameters()}
    outside |= {id(item) for item in base.get_output_embeddings().parameters()}
    inside = sum(item.numel() for item in base.parameters() if id(item) not in outside)
    trained = total
    if config.use_peft:
        with torch.device("meta"):
            wrapped = adapter.wrap(base, config)
        trained = sum(item.numel() for item in adapter.trainable(wrapped).values())
    return Shape(
        parameters=total,
        trainable=trained,
        in_layers=inside,
        layers=int(facts.num_hidden_layers),
        hidden=int(facts.hidden_size),
        intermediate=int(getattr(facts, "intermediate_size", None) or 4 * facts.hidden_size),
        vocabulary=int(facts.vocab_size),
    )


def workload(config: TrainConfig, samples: Sequence[Sample], tried: int = 8) -> Workload:
    """Tokens and steps of a run over these samples; the first `tried` steps are looked at."""
    sampler = Sampler(
        lengths=tuple(len(sample.ids) for sample in samples),
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        workers=1,
        seed=config.seed,
    )
    tokens = rows = learned = largest = 0
    for number in range(tried):
        mine = [index for row in sampler.step(number) for index in row[0]]
        chosen = [samples[index] for index in mine]
        for batch in passes(chosen, mine, config.max_tokens):
            rows += batch.ids.shape[1]
            largest = max(largest, batch.ids.shape[1])
        tokens += sum(len(sample.ids) for sample in chosen)
        learned += sum(sample.learned for sample in chosen)
    steps = Schedule.plan(config, len(samples)).max_steps
    times = (steps or 0) * config.most_workers / tried
    return Workload(
        examples=len(samples),
        steps=steps,
        tokens=round(tokens * times),
        rows=round(rows * times),
        learned=round(learned * times),
        largest_pass=largest,
    )


def flops(config: TrainConfig, shape: Shape, work: Workload) -> float:
    """Floating-point operations of a run: two a parameter and token forward, as many backward.

    Gradients of trained matrices cost the same once more; activations computed twice, a forward
    pass (Kaplan et al. 2020, section 2.1, for the count).
    """
    backward = 2.0 + 2.0 * min(1.0, shape.trainable / max(1, shape.in_layers))
    again = 2.0 if config.gradient_checkpointing else 0.0
    head = shape.hidden * shape.vocabulary
    return work.rows * shape.in_layers * (2.0 + backward + again) + work.learned * head * 4.0


def reading(shape: Shape, tokens: int, answered: int) -> float:
    """Floating-point operations of a forward pass over `tokens`, `answered` of which get logits.

    Two a parameter and token (Kaplan et al. 2020, section 2.1).
    """
    return 2.0 * (tokens * shape.in_layers + answered * shape.hidden * shape.vocabulary)


def memory(config: TrainConfig, shape: Shape, work: Workload) -> int:
    """Bytes one worker holds at the highest."""
    frozen = shape.parameters - (0 if config.use_peft else shape.trainable)
    matrices = min(frozen, shape.in_layers)
    wide = 2 if config.bf16 else 4
    narrow = 0.56 if config.load_in_4bit else 1.03 if config.load_in_8bit else wide
    weights = matrices * narrow + (frozen - matrices) * wide
    trained = shape.trainable * 16  # float32 weight, gradient and AdamW's two moments
    inside = 12 * shape.hidden + 5 * shape.intermediate
    copies = 6 * shape.hidden + shape.intermediate if config.use_peft else 0
    layer = inside * wide + copies * 4
    if config.gradient_checkpointing:
        activations = work.largest_pass * (shape.layers * shape.hidden * wide + layer)
    else:
        activations = work.largest_pass * shape.layers * layer
    logits = min(CHUNK, max(1, work.learned)) * shape.vocabulary * 12
    return math.ceil(_RUNTIME_BYTES + weights + trained + activations + logits)


def matrix_rate(bf16: bool, seconds: float = 0.3) -> float:
    """Floating-point operations a second of one core's matrix product, measured now."""
    size, before = 768, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left = torch.ones(size, size, dtype=torch.bfloat16 if bf16 else torch.float32)
        left @ left
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            left @ left
            count += 1
        return 2.0 * size**3 * count / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)


def estimate(
    config: TrainConfig,
    shape: Shape,
    work: Workload,
    *,
    flops_per_core: float,
    cores: int,
    pools: Mapping[str, OwnPool | RentedPool],
    beside: Beside = Beside(),
) -> Estimate:
    """What a run takes here and in each pool; a worker has a node of the pool to itself.

    What is computed `beside` it is outside of a budget of seconds, and not shared by the workers.
    """
    total = flops(config, shape, work) / config.most_workers
    budget = config.max_train_seconds

    def seconds(rate: float) -> float:
        training = min(total / rate, budget or math.inf) if total else (budget or 0.0)
        return training + beside.flops / rate

    return Estimate(
        method=config.method,
        shape=shape,
        workload=work,
        memory_bytes=memory(config, shape, work) + beside.memory_bytes,
        seconds=seconds(flops_per_core * cores * EFFICIENCY / config.most_workers),
        places=places(
            seconds, pools, flops_per_core=flops_per_core, cores=cores, workers=config.most_workers
        ),
    )


def places(
    seconds: Callable[[float], float],
    pools: Mapping[str, OwnPool | RentedPool],
    *,
    flops_per_core: float,
    cores: int,
    workers: int = 1,
) -> tuple[Place, ...]:
    """What work takes in each pool, the cheapest first; `seconds` is its time at a rate."""
    found = []
    for name, pool in pools.items():
        hours = (seconds(_rate(pool, flops_per_core, cores)) + pool.startup_s) / 3600
        nusd = math.ceil(hours * pool.nusd_per_hour * workers)
        found.append(Place(pool=name, hours=hours, nusd=nusd))
    return tuple(sorted(found, key=lambda place: (place.nusd, place.pool)))


def _rate(pool: OwnPool | RentedPool, flops_per_core: float, cores: int) -> float:
    if pool.accelerator in GPU_TFLOPS:
        return GPU_TFLOPS[pool.accelerator] * 1e12 * (pool.gpus or 1) * GPU_EFFICIENCY
    return flops_per_core * (pool.cpus or cores) * EFFICIENCY


def refuse_what_cannot_be(
    found: Estimate, config: TrainConfig, examples: int, memory_bytes: int, lora: Estimate | None
) -> None:
    """Raises `TrainingError` for a run that does not fit `memory_bytes` or its data.

    `lora` is what an adapter would take instead of full tuning.
    """
    if not config.use_peft and examples < config.full_tuning_min_examples:
        instead = ""
        if lora is not None:
            instead = (
                f" an adapter would train {lora.shape.trainable:,} instead of "
                f"{found.shape.trainable:,} parameters in {words(lora.seconds)}"
            )
            if lora.places:
                instead += f" for {dollars(lora.places[0].nusd)} on {lora.places[0].pool}"
            instead += ";"
        raise TrainingError(
            f"{examples} examples are too few to train every weight, at least "
            f"{config.full_tuning_min_examples} are asked for;{instead} set use_peft, or lower "
            "full_tuning_min_examples"
        )
    refuse_what_does_not_fit(found, memory_bytes)


def refuse_what_does_not_fit(found: Estimate, memory_bytes: int) -> None:
    """Raises `TrainingError` for a run that does not fit `memory_bytes`."""
    if found.memory_bytes > memory_bytes:
        raise TrainingError(
            f"the run needs about {found.memory_bytes / 2**30:.1f} GiB a worker and there are "
            f"{memory_bytes / 2**30:.1f} GiB; lower max_tokens, set gradient_checkpointing, "
            "load_in_4bit, or choose a smaller model"
        )


def dollars(nusd: int) -> str:
    """Money in words, no digit that matters lost: `$0.0042`, `$1.20`."""
    usd = nusd / 1e9
    return f"${usd:.2f}" if usd >= 1 else f"${usd:.4f}"


def words(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(found: Estimate, model: str, data: str) -> list[str]:
    """The estimate as lines for a person."""
    work, shape = found.workload, found.shape
    share = 100 * shape.trainable / shape.parameters
    steps = "until the time is over" if work.steps is None else f"{work.steps} steps"
    lines = [
        f"model      {model}, {shape.parameters:,} parameters",
        f"method     {found.method}, {shape.trainable:,} trainable ({share:.2f} %)",
        f"data       {data}, {work.examples} examples, {steps}, {work.tokens:,} tokens "
        f"({work.rows:,} computed, {work.learned:,} learned)",
        f"memory     about {found.memory_bytes / 2**30:.1f} GiB a worker",
        f"time       about {words(found.seconds)} on this machine",
    ]
    return lines + costs(found.places)


def costs(found: Sequence[Place]) -> list[str]:
    """What each pool takes, as lines for a person."""
    return [
        f"cost       {dollars(place.nusd)} on {place.pool}, {words(place.hours * 3600)} with start"
        for place in found
    ]


def plain(found: Estimate) -> dict[str, Any]:
    """The estimate as plain values, money in nano-dollars."""
    work, shape = found.workload, found.shape
    return {
        "method": found.method,
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "examples": work.examples,
        "steps": work.steps,
        "tokens": work.tokens,
        "memory_bytes": found.memory_bytes,
        "seconds": round(found.seconds, 1),
        "cost_nusd": {place.pool: place.nusd for place in found.places},
    }

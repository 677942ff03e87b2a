from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from factory.config.pools import OwnPool, RentedPool
from factory.training import adapter, estimate
from factory.training.chat import encode_all
from factory.training.config import TrainConfig, check
from factory.training.errors import TrainingError
from factory.training.estimate import Shape, Workload
from factory.training.model import build
from tests.training import tiny

SHAPE = Shape(
    parameters=135_000_000,
    trainable=5_000_000,
    in_layers=106_000_000,
    layers=30,
    hidden=576,
    intermediate=1536,
    vocabulary=49152,
)
WORK = Workload(examples=100, steps=10, tokens=9000, rows=6000, learned=300, largest_pass=600)
POOLS: dict[str, OwnPool | RentedPool] = {
    "onprem": OwnPool(capex_usd=Decimal(1500), amortize_months=48, power_w=60),
    "spot": RentedPool(
        provider="aws",
        usd_per_hour=Decimal("0.9"),
        spot_policy="spot",
        max_nodes=2,
        accelerator="A100",
        startup_s=60,
    ),
}
FULL = {"use_peft": False, "full_tuning_reason": "the vocabulary is a new one"}


def config(**values: Any) -> TrainConfig:
    return check(values, "test")


def foreseen(job: TrainConfig, shape: Shape = SHAPE, work: Workload = WORK) -> estimate.Estimate:
    return estimate.estimate(job, shape, work, flops_per_core=1e11, cores=2, pools=POOLS)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, FULL])
def test_parameters_are_counted_as_they_will_be_trained(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    job = config(bf16=False, lora_r=4, **changes)
    shape = estimate.measure(tiny_model, job)
    model, _ = build(str(tiny_model), job)
    trained = adapter.trainable(model)
    assert shape.trainable == sum(item.numel() for item in trained.values())
    whole = model.get_base_model() if job.use_peft else model
    if not job.use_peft:
        assert shape.parameters == sum(item.numel() for item in whole.parameters())


def test_tokens_of_whole_epochs_are_those_of_the_data(tiny_model: Path) -> None:
    samples = encode_all(AutoTokenizer.from_pretrained(tiny_model), tiny.examples(32), 256, False)
    job = config(num_train_epochs=2, per_device_train_batch_size=4)
    work = estimate.workload(job, samples)
    assert work.steps == 16
    assert work.tokens == pytest.approx(2 * sum(len(item.ids) for item in samples), rel=0.02)
    assert work.rows < work.tokens
    assert work.largest_pass <= job.max_tokens


def test_a_pool_costs_its_hours_with_the_start_and_a_faster_one_needs_fewer() -> None:
    found = foreseen(config())
    by_name = {place.pool: place for place in found.places}
    assert [place.nusd for place in found.places] == sorted(place.nusd for place in found.places)
    spot = by_name["spot"]
    assert spot.nusd >= spot.hours * 0.9e9
    assert spot.hours * 3600 > 60
    own = by_name["onprem"]
    assert own.hours * 3600 == pytest.approx(found.seconds)
    assert spot.hours * 3600 - 60 < found.seconds / 50


@given(
    steps=st.integers(1, 1000),
    rank=st.integers(1, 10**7),
    checkpointing=st.booleans(),
)
def test_more_work_never_takes_less(steps: int, rank: int, checkpointing: bool) -> None:
    job = config(gradient_checkpointing=checkpointing)
    work = replace(WORK, steps=steps, tokens=900 * steps, rows=600 * steps, learned=30 * steps)
    shape = replace(SHAPE, trainable=rank)
    less = foreseen(job, shape, work)
    more = foreseen(job, replace(shape, trainable=2 * rank), replace(work, rows=2 * work.rows))
    assert more.seconds > less.seconds
    assert more.memory_bytes > less.memory_bytes
    assert all(place.nusd > 0 for place in less.places)


def test_quantized_bases_and_checkpointing_need_less_memory() -> None:
    plain = foreseen(config()).memory_bytes
    assert foreseen(config(load_in_4bit=True)).memory_bytes < plain
    assert foreseen(config(load_in_8bit=True)).memory_bytes < plain
    assert foreseen(config(gradient_checkpointing=True)).memory_bytes < plain
    assert foreseen(config(**FULL), replace(SHAPE, trainable=135_000_000)).memory_bytes > plain


def test_what_does_not_fit_is_said_before_it_starts() -> None:
    found = foreseen(config())
    estimate.refuse_what_cannot_be(found, config(), 100, 2**40, None)
    with pytest.raises(TrainingError, match=r"needs about .* GiB a worker and there are 0.5 GiB"):
        estimate.refuse_what_cannot_be(found, config(), 100, 2**29, None)


def test_full_tuning_on_few_examples_is_told_what_an_adapter_would_cost() -> None:
    job = config(**FULL)
    found = foreseen(job, replace(SHAPE, trainable=135_000_000))
    with pytest.raises(TrainingError, match=r"5,000,000 instead of 135,000,000 .* for \$0\.\d+"):
        estimate.refuse_what_cannot_be(found, job, 100, 2**40, foreseen(config()))
    estimate.refuse_what_cannot_be(found, job, 1000, 2**40, foreseen(config()))


def test_the_table_names_everything() -> None:
    text = "\n".join(estimate.table(foreseen(config()), "smollm2-135m", "helpdesk"))
    for word in ("smollm2-135m", "lora", "9,000 tokens", "GiB", "on onprem", "on spot", "$"):
        assert word in text


def test_a_matrix_product_has_a_rate() -> None:
    assert estimate.matrix_rate(bf16=False, seconds=0.01) > 1e8


def test_a_teacher_beside_the_run_costs_its_passes_and_its_memory() -> None:
    job, rate = config(), 1e11
    passes = estimate.reading(SHAPE, 1000, 100)
    assert passes == 2 * (1000 * SHAPE.in_layers + 100 * SHAPE.hidden * SHAPE.vocabulary)
    taught = estimate.estimate(
        job,
        SHAPE,
        WORK,
        flops_per_core=rate,
        cores=2,
        pools=POOLS,
        beside=estimate.Beside(flops=passes, memory_bytes=10),
    )
    alone = foreseen(job)
    extra = passes / (rate * 2 * estimate.EFFICIENCY)
    assert taught.seconds == pytest.approx(alone.seconds + extra)
    assert taught.memory_bytes == alone.memory_bytes + 10
    assert all(a.nusd >= b.nusd for a, b in zip(taught.places, alone.places, strict=True))

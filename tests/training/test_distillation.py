from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from factory.training import dataset, teaching
from factory.training.chat import Sample, collate, encode
from factory.training.config import check_as
from factory.training.distill import DistillConfig, run_distillation
from factory.training.distillation import FromTeacher, in_order
from factory.training.divergence import divergence, sparse
from factory.training.errors import TrainingError
from factory.training.loop import Peers
from factory.training.loss import Learned
from factory.training.run import RunFolder
from factory.training.student import make_student
from factory.training.train import Task
from tests.training import tiny


def test_gold_answers_count_where_they_are_trusted() -> None:
    torch.manual_seed(1)
    teachings = [sparse(torch.randn(n, 12), 5, 2.0) for n in (2, 3)]
    loss = FromTeacher(teachings, [True, False], temperature=2.0, ce_weight=0.25)
    logits = torch.randn(3, 12)
    learned = Learned(
        wanted=torch.tensor([4, 7, 1]),
        example=torch.tensor([1, 0, 1]),
        place=torch.tensor([2, 1, 0]),
    )
    rows = [(1, 2), (0, 1), (1, 0)]
    expected = 0.0
    for at, (example, place) in enumerate(rows):
        one = teachings[example]
        alone = type(one)(
            ids=one.ids[place : place + 1],
            logits=one.logits[place : place + 1],
            tail=one.tail[place : place + 1],
            temperature=2.0,
        )
        far = divergence("forward_kl", logits[at : at + 1], alone, temperature=2.0)
        entropy = torch.nn.functional.cross_entropy(logits[at], learned.wanted[at])
        weight = 0.25 if example == 0 else 0.0
        expected += float(weight * entropy + (1 - weight) * 4.0 * far)
    assert loss(logits, learned).item() == pytest.approx(expected, rel=1e-5)


def test_a_cache_that_does_not_fit_the_data_is_refused() -> None:
    kept = {"a": sparse(torch.randn(2, 6), 3, 1.0)}
    assert in_order(kept, ["a"], [2]) == [kept["a"]]
    with pytest.raises(TrainingError, match="lacks example 'b'"):
        in_order(kept, ["a", "b"], [2, 1])
    with pytest.raises(TrainingError, match="another cut of example 'a'"):
        in_order(kept, ["a"], [3])


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with what the tiny model says about it; half of it has untrusted answers."""
    folder = tiny.data(tmp_path_factory.mktemp("taught") / "desk", train=24)
    split = dataset.read(folder, ("train", "validation"))
    half = [
        one.model_copy(update={"synthetic": True}) if at % 2 else one
        for at, one in enumerate(split["train"])
    ]
    split["train"] = half
    dataset.write(folder, split, dataset.card(split, name="tiny"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    samples: list[Sample] = [encode(tokenizer, one) for one in half]
    said = teaching.teach(
        teaching.load_teacher(tiny_model),
        samples,
        vocabulary=len(tokenizer),
        k=32,
        temperature=2.0,
    )
    teaching.write(folder / "part-data-00000.parquet", [one.id for one in samples], said)
    return folder


def distil(model: Path, data: Path, run: Path, **changes: Any) -> list[float]:
    values: dict[str, Any] = {
        "bf16": False,
        "learning_rate": 1e-2,
        "max_steps": 8,
        "save_steps": 4,
        "logging_steps": 1,
        "eval_samples": 4,
    }
    config = check_as(DistillConfig, values | changes, "job")
    task = Task(
        config=config.model_dump(mode="json"),
        model=str(model),
        base_name="tiny",
        revision="0",
        data=str(data),
        run=str(run),
        fingerprint="same",
        threads=1,
    )
    run_distillation(task, Peers())
    return [point["loss"] for point in RunFolder(run).points()]


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_comes_closer_to_its_teacher_and_keeps_its_embeddings(
    tiny_model: Path, taught: Path, tmp_path: Path, kind: str
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    make_student(tiny_model, (0,), student)
    losses = distil(student, taught, tmp_path / "run", divergence=kind, ce_weight=0.0)
    assert losses[-1] < 0.9 * losses[0]
    before, after = (_tensors(folder) for folder in (student, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("mlp" in name for name in changed)


def test_a_killed_distillation_goes_on_bitwise(
    tiny_model: Path, taught: Path, tmp_path: Path
) -> None:
    whole = distil(tiny_model, taught, tmp_path / "whole")
    distil(tiny_model, taught, tmp_path / "cut", max_steps=4, lr_scheduler_type="constant")
    again = distil(tiny_model, taught, tmp_path / "cut", lr_scheduler_type="constant")
    straight = distil(tiny_model, taught, tmp_path / "straight", lr_scheduler_type="constant")
    assert again == straight
    assert len(whole) == 8
    ours, theirs = _tensors(tmp_path / "cut" / "model"), _tensors(tmp_path / "straight" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_sequence_student_needs_no_logits(tiny_model: Path, tmp_path: Path) -> None:
    folder = tiny.data(tmp_path / "desk", train=16)
    losses = distil(tiny_model, folder, tmp_path / "run", distillation="sequence")
    assert losses[-1] < losses[0]
    with pytest.raises(TrainingError, match="lacks example"):
        distil(tiny_model, folder, tmp_path / "other")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_whole_loss_through_packing_is_that_of_single_conversations(
    tiny_model: Path, taught: Path
) -> None:
    from factory.training.objective import Objective

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    examples = dataset.read(taught, ["train"])["train"][:5]
    samples = [encode(tokenizer, one) for one in examples]
    kept = teaching.read(taught)
    loss = FromTeacher(
        in_order(kept, [one.id for one in samples], [one.learned for one in samples]),
        [not one.synthetic for one in examples],
    )
    student = Objective(teaching.load_teacher(tiny_model).float(), loss)
    together, _ = student(collate(samples))
    single = sum(student(collate([one], [at]))[0] for at, one in enumerate(samples))
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)

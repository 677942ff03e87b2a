"""On-policy distillation: the student's own answers, scored by a teacher in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from factory.training import packing, teaching
from factory.training.chat import IGNORED, Sample, collate, encode
from factory.training.config import check_as
from factory.training.distill import DistillConfig, run_distillation
from factory.training.distillation import FromTeacher
from factory.training.errors import TrainingError
from factory.training.loop import Peers
from factory.training.objective import Objective
from factory.training.on_policy import OnPolicy, prompt
from factory.training.run import RunFolder
from factory.training.student import make_student
from factory.training.train import Task
from tests.training import tiny


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return [encode(tokenizer, one) for one in tiny.examples(6)]


def on_policy(folder: Path, samples: list[Sample], **changes: Any) -> OnPolicy:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values: dict[str, Any] = {
        "vocabulary": len(tokenizer),
        "stops": {tokenizer.eos_token_id},
        "lmbda": 1.0,
        "max_new_tokens": 5,
        "top_k": 16,
        "kind": "jsd",
        "temperature": 1.0,
        "ce_weight": 0.25,
        "beta": 0.5,
    }
    student, teacher = (teaching.load_teacher(folder).float() for _ in range(2))
    return OnPolicy(student, teacher, samples, [True] * len(samples), **{**values, **changes})


def test_the_prompt_ends_where_the_last_learned_turn_begins() -> None:
    targets = (IGNORED, IGNORED, 7, 8, IGNORED, 9, 10)
    assert prompt(Sample("a", (1, 2, 7, 8, 3, 9, 10), targets)) == (1, 2, 7, 8, 3)


def test_answers_are_the_students_and_what_was_asked_stays(
    tiny_model: Path, samples: list[Sample]
) -> None:
    objective = on_policy(tiny_model, samples)
    (stop,) = objective._stops
    torch.manual_seed(3)
    said = objective.answered(samples)
    torch.manual_seed(3)
    again = objective.answered(samples)

    assert said == again, "answers come from the generator that checkpoints keep"
    for sample, one in zip(samples, said, strict=True):
        asked = prompt(sample)
        assert one.ids[: len(asked)] == asked
        answer = one.ids[len(asked) :]
        assert one.targets[len(asked) :] == answer
        assert 1 <= len(answer) <= 5
        assert stop not in answer[:-1]
    assert objective.model.config._attn_implementation == packing.NAME


def test_the_cached_beginning_and_the_padding_change_no_answer(
    tiny_model: Path, samples: list[Sample]
) -> None:
    objective = on_policy(tiny_model, samples, stops={0})
    with torch.no_grad():
        objective.model.get_output_embeddings().weight.mul_(40)  # so sure that it cannot vary
    together = objective.answered(samples)

    assert together == [objective.answered([one])[0] for one in samples]


def test_a_student_like_its_teacher_has_nothing_to_learn_from_its_own_answers(
    tiny_model: Path, samples: list[Sample]
) -> None:
    objective = on_policy(tiny_model, samples, top_k=1000)
    total, _ = objective(collate(samples))
    assert total.item() == pytest.approx(0.0, abs=1e-4)
    trained, teacher = list(objective.parameters()), list(objective._teacher[0].parameters())
    assert not {id(one) for one in trained} & {id(one) for one in teacher}


def test_without_lmbda_it_is_distillation_on_the_datas_answers(
    tiny_model: Path, samples: list[Sample]
) -> None:
    objective = on_policy(tiny_model, samples, lmbda=0.0)
    said = teaching.teach(
        objective._teacher[0], samples[2:5], vocabulary=objective._vocabulary, k=16, temperature=1.0
    )
    loss = FromTeacher(said, [True] * 3, kind="jsd", temperature=1.0, ce_weight=0.25, beta=0.5)
    expected, right = Objective(objective.model, loss)(collate(samples[2:5]))
    total, hits = objective(collate(samples[2:5], [2, 3, 4]))

    torch.testing.assert_close(total, expected)
    assert hits.tolist() == right.tolist()


def distil(student: Path, teacher: Path | None, data: Path, run: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "distillation": "on_policy",
        "divergence": "jsd",
        "ce_weight": 0.0,
        "temperature": 1.0,
        "bf16": False,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 8,
        "save_steps": 4,
        "logging_steps": 1,
        "eval_samples": 4,
        "max_new_tokens": 4,
    }
    config = check_as(DistillConfig, {**values, **changes}, "job")
    task = Task(
        config=config.model_dump(mode="json"),
        model=str(student),
        base_name="tiny",
        revision="0",
        data=str(data),
        run=str(run),
        fingerprint="same",
        threads=1,
        teacher=None if teacher is None else str(teacher),
    )
    return run_distillation(task, Peers())


def test_a_student_comes_closer_where_its_own_answers_lead_and_goes_on_bitwise(
    tiny_model: Path, tmp_path: Path
) -> None:
    student, data = tmp_path / "student", tiny.data(tmp_path / "desk", train=24)
    student.mkdir()
    make_student(tiny_model, (0,), student)
    distil(student, tiny_model, data, tmp_path / "whole", lmbda=1.0)
    losses = [point["loss"] for point in RunFolder(tmp_path / "whole").points()]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    distil(student, tiny_model, data, tmp_path / "cut", lmbda=1.0, max_steps=4)
    summary = distil(student, tiny_model, data, tmp_path / "cut", lmbda=1.0)
    assert summary.resumed_from == 4
    ours, theirs = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cut", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_is_told(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "desk", train=8)
    with pytest.raises(TrainingError, match="needs the teacher's weights"):
        distil(tiny_model, None, data, tmp_path / "run")
    with pytest.raises(TrainingError, match="leave zero_stage out"):
        check_as(
            DistillConfig, {"distillation": "on_policy", "zero_stage": 2, "num_workers": 2}, "job"
        )
    with pytest.raises(TrainingError, match="lmbda"):
        check_as(DistillConfig, {"lmbda": 1.5}, "job")

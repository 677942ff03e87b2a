"""Distillation by the job: a teacher answers prompts, a student learns, its weights are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from factory import config as factory_config
from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.evaluation.suite import Case, Suite
from factory.evaluation.suite import write as write_suite
from factory.training import dataset, teaching
from factory.training.config import check_as
from factory.training.dataset import DatasetError
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from pipelines import distill, finetune, lesson
from pipelines.taught import find_prompts, teach_data
from tests.training import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data") / "desk")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return factory_config.parse(
        factory_config.default_text(), "default", tmp_path, {"FACTORY_HOME": str(tmp_path / "home")}
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(number),
            "messages": [
                {"role": "system", "content": tiny.SYSTEM},
                {"role": "user", "content": f"decode {number} objects of a file descriptor"},
            ],
        }
        for number in range(6)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(model: Path, data: Path, **changes: Any) -> DistillConfig:
    values = {
        "teacher": str(model),
        "dataset": str(data),
        "adapter_name": "small",
        "student_layers": 1,
        "bf16": False,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "cpus_per_worker": 1,
        "max_answer_tokens": 4,
    }
    return check_as(DistillConfig, {**values, **changes}, "job")


@pytest.mark.ray
def test_a_student_ends_in_the_object_store_and_what_was_taught_is_kept(
    ray_cluster: object, settings: Settings, model: Path, data: Path, tmp_path: Path
) -> None:
    config = arguments(model, data)
    closing = distill.run(settings, config, "one")
    store = ObjectStore(settings.objects)
    (stored,) = store.list("weights")
    assert (stored.name, stored.hash) == ("small", closing["hash"])
    assert stored.meta["teacher_hash"] == closing["teacher_hash"]
    student = AutoModelForCausalLM.from_pretrained(stored.path)
    assert student.config.num_hidden_layers == 1
    assert closing["steps"] == 6
    assert closing["layers"] == (0,)
    (taught,) = store.list("taught")
    said: list[str] = []
    teacher, corpus = (
        lesson.find_teacher(settings, store, str(model)),
        finetune.find_data(store, str(data)),
    )
    again = teach_data(
        store, teacher, corpus.name, corpus.folder, [], config, tmp_path / "work", said.append
    )
    assert again == taught
    assert any("in the object store already" in line for line in said)


def test_answers_are_kept_with_their_distributions_and_judged_questions_left_out(
    settings: Settings, model: Path, data: Path, prompts: Path, tmp_path: Path
) -> None:
    store = ObjectStore(settings.objects)
    asked = find_prompts(store, str(prompts))
    case = Case.model_validate(
        {"id": "c", "messages": [t.model_dump() for t in asked[2].messages], "expected": "json"}
    )
    suite = Suite.build(name="desk", version=1, labels=(), scorer="exact", cases=[case])

    def fill(folder: Path) -> None:
        write_suite(suite, folder / "desk.suite")

    store.put("suites", "desk", fill)
    free = tmp_path / "free"
    free.mkdir()
    split = dataset.read(data, ("train", "validation"))
    unlabelled = {
        name: [one.model_copy(update={"label": None}) for one in part]
        for name, part in split.items()
    }
    dataset.write(free, unlabelled, dataset.card(unlabelled, name="free"))
    teacher = lesson.find_teacher(settings, store, str(model))
    config = arguments(model, free)
    said: list[str] = []
    made = teach_data(store, teacher, "free", free, asked, config, tmp_path / "work", said.append)
    train = dataset.read(made.path, ["train"])["train"]
    answered = [one for one in train if one.synthetic]
    card = dataset.read_card(made.path)
    left = card["left_out"]["asked by a suite or the validation split"]
    assert 1 <= left <= 6
    assert len(answered) <= 6 - left
    assert "taught:2" not in {one.id for one in answered}
    kept = teaching.read(made.path)
    assert {one.id for one in train} <= set(kept)
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def test_what_cannot_teach_is_named(settings: Settings, model: Path, data: Path) -> None:
    store = ObjectStore(settings.objects)
    with pytest.raises(TrainingError, match="is not in the object store"):
        lesson.find_teacher(settings, store, "smollm2-135m")
    with pytest.raises(TrainingError, match="neither in the catalog"):
        lesson.find_teacher(settings, store, "nothing")
    with pytest.raises(DatasetError, match="there are no prompts 'nobody'"):
        find_prompts(store, "nobody")
    teacher = lesson.find_teacher(settings, store, str(model))
    with pytest.raises(TrainingError, match="5 layers cannot be made from 2"):
        lesson.find_student(settings, store, teacher, arguments(model, data, student_layers=5))
    assert store.list("students") == []


def test_a_dry_run_says_what_teacher_and_student_will_take_and_trains_nothing(
    settings: Settings, model: Path, data: Path, prompts: Path
) -> None:
    said: list[str] = []
    alone = distill.dry_run(settings, arguments(model, data), said.append)
    more = distill.dry_run(settings, arguments(model, data, prompts=str(prompts)), said.append)
    beside = distill.dry_run(settings, arguments(model, data, distillation="on_policy"))
    assert (alone["dry_run"], alone["steps"], alone["layers"]) == (True, 6, (0,))
    assert 0 < alone["trainable"] < alone["parameters"]
    assert more["examples"] == alone["examples"] + 6
    assert beside["memory_bytes"] > alone["memory_bytes"]
    assert set(alone["cost_nusd"]) == set(settings.pools)
    assert any(line.startswith("cost") for line in said)
    store = ObjectStore(settings.objects)
    assert [*store.list("weights"), *store.list("taught")] == []
    assert not (settings.home / "runs").exists()


def test_a_wrong_flag_is_not_blamed_on_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert distill.main(["--lmbda", "5"]) == 1
    assert "the command line: lmbda" in capsys.readouterr().err

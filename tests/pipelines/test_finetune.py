"""The tuning job: by the command, on Ray Train, through kills and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from mlflow.tracking import MlflowClient
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory import config as factory_config
from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.training import dataset
from factory.training.config import TrainConfig, check
from factory.training.errors import TrainingError
from factory.training.loop import Peers, Summary
from factory.training.run import RunFolder
from factory.training.train import Task, launch, load_data, run_task
from pipelines import finetune
from tests.training import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data") / "desk")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    return factory_config.parse(
        factory_config.default_text(), "default", tmp_path, {"FACTORY_HOME": str(tmp_path / "home")}
    )


def job(model: Path, data: Path, **changes: Any) -> TrainConfig:
    values = {
        "model": str(model),
        "dataset": str(data),
        "bf16": False,
        "lora_r": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "cpus_per_worker": 1,
    }
    return check({**values, **changes}, "job")


def losses(settings: Settings, name: str) -> list[float]:
    return [point["loss"] for point in RunFolder(settings.home / "runs" / name).points()]


def adapters(settings: Settings) -> list[Any]:
    return ObjectStore(settings.objects).list("adapters")


@pytest.mark.ray
def test_a_run_ends_in_the_object_store_and_in_mlflow(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    closing = finetune.tune(settings, job(model, data), "one")
    assert closing["steps"] == 6
    assert closing["validation_accuracy"] is not None
    stored = adapters(settings)
    assert [item.hash for item in stored] == [closing["hash"]]
    assert stored[0].name == "desk"
    assert stored[0].meta["data_hash"] == closing["data_hash"]
    facts = json.loads((stored[0].path / "adapter_config.json").read_text())
    assert facts["revision"] == closing["base_revision"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), stored[0].path)

    client = MlflowClient(tracking_uri=settings.mlflow_uri)
    run = client.get_run(closing["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "4"
    assert run.data.tags["data_hash"] == closing["data_hash"]
    curve = client.get_metric_history(closing["run_id"], "loss")
    assert [point.value for point in curve] == pytest.approx(losses(settings, "one"))
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]


@pytest.mark.ray
def test_two_workers_learn_what_one_with_twice_the_batch_learns(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    finetune.tune(settings, job(model, data, per_device_train_batch_size=8), "single")
    pair = job(model, data, per_device_train_batch_size=4, num_workers=2)
    finetune.tune(settings, pair, "pair")
    assert losses(settings, "pair") == pytest.approx(losses(settings, "single"), rel=1e-3)


@pytest.mark.ray
def test_zero_over_two_ray_workers_ends_in_the_whole_weights_of_one(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    whole = {
        "use_peft": False,
        "full_tuning_reason": "the test trains every weight",
        "full_tuning_min_examples": 10,
        "max_steps": 3,
    }
    spread = {"zero_stage": 3, "num_workers": 2, "per_device_train_batch_size": 4}
    closing = finetune.tune(settings, job(model, data, **whole, **spread), "spread")
    alone = finetune.plan(
        settings, job(model, data, **whole, per_device_train_batch_size=8), "alone"
    )
    run_task(alone.task(1), Peers())

    assert losses(settings, "spread") == pytest.approx(losses(settings, "alone"), rel=1e-3)
    assert closing["validation_accuracy"] is not None
    (stored,) = ObjectStore(settings.objects).list("weights")
    ours, theirs = (load_file(f / "model.safetensors") for f in (stored.path, alone.run.model))
    assert ours.keys() == theirs.keys()
    for name, item in theirs.items():
        torch.testing.assert_close(ours[name], item, rtol=1e-2, atol=1e-3)


@pytest.mark.ray
def test_a_killed_command_goes_on_when_it_is_given_again(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    wanted = job(model, data, max_steps=400, save_steps=10, eval_samples=0)
    flags = [f"--{key}={json.dumps(value)}" for key, value in wanted.model_dump().items()]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "pipelines.finetune", "--run-name", "cut", *flags]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = RunFolder(settings.home / "runs" / "cut")
    deadline = time.monotonic() + 180
    while not list(run.checkpoints.glob("step-*")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said

    _settled(run)
    closing = finetune.tune(settings, wanted, "cut")
    assert 0 < closing["resumed_from"] < 400
    alone = RunFolder(settings.home / "runs" / "alone")
    run_task(finetune.plan(settings, wanted, "alone").task(threads=1), Peers())
    assert losses(settings, "cut") == losses(settings, "alone")
    stored = adapters(settings)[0].path
    for path in alone.adapter.iterdir():
        assert (stored / path.name).read_bytes() == path.read_bytes()


def _settled(run: RunFolder) -> None:
    """Wait until the orphaned worker of a killed driver has stopped writing."""
    quiet_since, seen = time.monotonic(), ""
    while time.monotonic() - quiet_since < 3:
        now = run.curve.read_text() if run.curve.exists() else ""
        if now != seen:
            quiet_since, seen = time.monotonic(), now
        time.sleep(0.1)


@pytest.mark.ray
def test_a_failing_run_says_one_sentence_and_stores_nothing(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    with pytest.raises(TrainingError, match=r"step \d+; lower learning_rate"):
        finetune.tune(settings, job(model, data, learning_rate=1e30, warmup_steps=0), "wild")
    assert adapters(settings) == []
    client = MlflowClient(tracking_uri=settings.mlflow_uri)
    run = client.get_run((settings.home / "runs" / "wild" / "mlflow_run_id").read_text())
    assert run.info.status == "FAILED"
    assert "lower learning_rate" in run.data.tags["failure"]


def break_down(task: Task, peers: Peers) -> Summary:
    """A worker that fails the same way at every start."""
    raise ZeroDivisionError(f"start {len(RunFolder(Path(task.run)).starts())} went wrong")


@pytest.mark.ray
def test_a_run_that_fails_again_and_again_stops_with_a_diagnosis(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    task = finetune.plan(settings, job(model, data, max_failures=1), "broken").task(threads=1)
    said: list[str] = []
    with pytest.raises(TrainingError, match=r"failed 2 times in a row after step 0 .*went wrong"):
        launch(task, cpus=1, work=break_down, say=said.append)
    assert len(said) == 1
    assert "starting again" in said[0]


def _fails(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert finetune.main(list(flags)) == 1
    out = capsys.readouterr()
    assert out.out == ""
    return out.err


def test_what_is_missing_is_named(
    settings: Settings, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ("--model", str(model))
    assert "no data set 'absent'" in _fails(capsys, *folder, "--dataset", "absent")
    assert "factory models pull" in _fails(capsys, "--dataset", str(data))
    assert "neither in the catalog" in _fails(capsys, "--model", "gpt", "--dataset", str(data))
    assert "cannot name a run" in _fails(
        capsys, *folder, "--dataset", str(data), "--run-name", "../x"
    )
    assert "cannot read the job config" in _fails(capsys, "--config", "absent.yaml")
    (data / "empty").mkdir(exist_ok=True)
    assert "has no train.jsonl" in _fails(capsys, *folder, "--dataset", str(data / "empty"))
    (data / "empty" / "train.jsonl").write_text("")
    (data / "empty" / "validation.jsonl").write_text("")
    assert "has no examples" in _fails(capsys, *folder, "--dataset", str(data / "empty"))
    assert adapters(settings) == []


def test_a_label_that_never_occurs_is_an_error(tmp_path: Path, model: Path) -> None:
    rows = tiny.examples(12)
    split = {"train": [row for row in rows if row.label != "ssl"], "validation": rows}
    dataset.write(tmp_path, split, dataset.card(split))
    tokenizer = AutoTokenizer.from_pretrained(model)
    with pytest.raises(TrainingError, match=r"label 'ssl' .* never occurs in its train split"):
        load_data(tmp_path, tokenizer, TrainConfig())


def test_a_label_that_the_card_does_not_know_is_an_error(tmp_path: Path, model: Path) -> None:
    rows = tiny.examples(12)
    split = {"train": rows, "validation": rows}
    card = dataset.card(split)
    odd = rows[5].model_copy(update={"label": "smtp"})
    dataset.write(tmp_path, {"train": [*rows, odd], "validation": rows}, card)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with pytest.raises(TrainingError, match=r"'os.5' of the train split .* the label 'smtp'"):
        load_data(tmp_path, tokenizer, TrainConfig())


def test_a_run_that_is_going_on_is_left_alone(settings: Settings, model: Path, data: Path) -> None:
    folder = settings.home / "runs" / "busy"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(TrainingError, match="in another process"):
        finetune.tune(settings, job(model, data), "busy")


def test_flags_take_both_spellings_and_the_default_config_is_complete() -> None:
    given = vars(finetune.parser().parse_args(["--max_steps", "3", "--learning-rate", "1e-4"]))
    assert (given["max_steps"], given["learning_rate"]) == (3, "1e-4")
    config = finetune.load(given.pop("config"), {"max_steps": 3, "learning_rate": "1e-4"})
    assert (config.max_steps, config.learning_rate) == (3, 1e-4)


def test_a_dry_run_says_what_it_will_take_and_starts_nothing(
    settings: Settings, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data(tmp_path / "desk")
    rows = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "validation.jsonl").write_text(rows[2], "utf-8")
    flags = [f"--{key}={json.dumps(value)}" for key, value in job(model, data).model_dump().items()]
    assert finetune.main(["--dry-run", *flags]) == 0
    said = capsys.readouterr()
    closing = json.loads(said.out.splitlines()[-1])
    assert closing["steps"] == 6
    assert closing["cost_nusd"]["onprem"] > 0
    assert "trainable" in said.err
    assert closing["given_away"] == {"validation": 1}
    assert "flatters its score" in said.err
    assert not (settings.home / "runs").exists()


def test_full_tuning_on_a_handful_is_refused_before_it_starts(
    settings: Settings, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"use_peft": False, "full_tuning_reason": "because it is there"}
    flags = [f"--{key}={json.dumps(value)}" for key, value in job(model, data, **whole)]
    assert finetune.main(flags) == 1
    assert "48 examples are too few to train every weight" in capsys.readouterr().err
    assert not (settings.home / "runs").exists()


def test_the_schema_names_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(TrainConfig.model_fields)
    assert all("description" in field for field in schema["properties"].values())

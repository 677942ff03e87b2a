"""The search by the command: real trials on Ray Tune, dry runs, and bad input."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from factory import config as factory_config
from factory.config import Settings
from factory.training import dataset
from factory.training.config import check_as, load
from factory.training.errors import TrainingError
from factory.training.search import SearchConfig
from pipelines import tune
from tests.training import tiny


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


def job(model: Path, data: Path, **changes: Any) -> SearchConfig:
    values = {
        "model": str(model),
        "dataset": str(data),
        "bf16": False,
        "lora_r": 4,
        "max_steps": 8,
        "save_steps": 2,
        "grace_period": 2,
        "reduction_factor": 2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "max_usd": 1,
        # One after the other in one process: loading the libraries takes longer than all trials.
        "max_concurrent_trials": 1,
        # one that learns, one that hardly does, one whose loss is soon no number
        "space": {"learning_rate": {"choice": [1e-2, 1e-7, 1e30]}},
        "num_samples": 12,
    }
    return check_as(SearchConfig, {**values, **changes}, "job")


@pytest.mark.ray
def test_a_search_finds_the_rate_that_learns_survives_a_failure_and_is_resumed(
    ray_cluster: object, settings: Settings, model: Path, data: Path
) -> None:
    said: list[str] = []
    config = job(model, data)
    closing = tune.search(settings, config, "one", said.append)
    assert closing["best"]["params"] == {"learning_rate": 1e-2}
    assert closing["best"]["steps"] == 8
    by_rate = {each["params"]["learning_rate"]: each for each in closing["trials"]}
    assert by_rate[1e30]["status"] == "failed"
    assert "lower learning_rate" in by_rate[1e30]["reason"]
    assert by_rate[1e-7]["status"] == "stopped early"
    assert by_rate[1e-7]["steps"] < 8
    assert all(each["cost_nusd"] > 0 for each in closing["trials"])
    assert closing["cost_nusd"] == sum(each["cost_nusd"] for each in closing["trials"])
    assert closing["stopped"] == "all trials have ended"
    assert load(Path(closing["config"])).learning_rate == 1e-2
    assert Path(closing["plot"]).stat().st_size > 10_000

    client = MlflowClient(tracking_uri=settings.mlflow_uri)
    parent = client.get_run(closing["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{closing['run_id']}'"
    )
    assert len(children) == 3
    assert {run.info.status for run in children} == {"FINISHED", "FAILED"}

    again = tune.search(settings, config, "one", said.append)
    assert again["trials"] == closing["trials"], "what has ended is not tried or paid again"
    with pytest.raises(TrainingError, match="started with other arguments"):
        tune.search(settings, job(model, data, max_steps=6), "one")

    # Less than any second costs: the money ends the search, whatever is known by then.
    with suppress(TrainingError):
        tune.search(settings, job(model, data, max_usd="1e-9", max_steps=2000), "poor", said.append)
    kept = json.loads((settings.home / "runs" / "poor" / "spending.json").read_text())
    assert kept["stopped"].startswith("the budget is spent")
    assert any(kept["seconds"].values()), "what was begun is paid until its process is gone"


def test_a_dry_run_shows_every_trial_and_starts_nothing(
    settings: Settings, model: Path, data: Path
) -> None:
    said: list[str] = []
    config = job(model, data, space={"lora_r": {"choice": [2, 4]}})
    closing = tune.dry_run(settings, config, "dry", said.append)
    assert sorted(each["params"]["lora_r"] for each in closing["trials"]) == [2, 4]
    small, large = sorted(closing["trials"], key=lambda each: each["params"]["lora_r"])
    assert small["trainable"] < large["trainable"]
    for pool, nusd in closing["cost_nusd"].items():
        assert nusd == sum(each["cost_nusd"][pool] for each in closing["trials"])
    assert closing["budget_nusd"] == 10**9
    assert said[-1] == "the search stops at $1.00"
    assert not (settings.home / "runs").exists()


def test_the_data_may_be_searched_but_not_hold_what_judges_the_trials(
    settings: Settings, model: Path, data: Path, tmp_path: Path
) -> None:
    rows = dataset.read(data, ("train", "validation"))
    less = {**rows, "train": rows["train"][:24]}
    leaky = {**rows, "train": [*rows["train"], rows["validation"][0]]}
    for name, split in (("less", less), ("leaky", leaky)):
        (tmp_path / name).mkdir()
        dataset.write(tmp_path / name, split, dataset.card(split, name=name))

    def mixed(*names: str) -> SearchConfig:
        values = [str(data), *(str(tmp_path / name) for name in names)]
        return job(model, data, space={"dataset": {"choice": values}})

    _, jobs = tune.plan(settings, mixed("less"), "mix")
    assert {each.corpus.folder.name for _, each in jobs} == {"desk", "less"}
    with pytest.raises(TrainingError, match=r"1 examples that the data set .*leaky.*such as"):
        tune.plan(settings, mixed("less", "leaky"), "mix")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--space", "{}"], "space: "),
        (["--space", "{lerning_rate: {choice: [1]}}"], "lerning_rate: unknown argument"),
        (["--max-usd", "0"], "max_usd: "),
        (["--pool", "moon"], "there is no pool 'moon'"),
        (["--dataset", "no/where"], "no train.jsonl"),
        (["--config", "missing.yaml"], "cannot read the job config"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_no_folder(
    settings: Settings,
    model: Path,
    data: Path,
    flags: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ["--run-name", "bad", "--model", str(model), "--dataset", str(data)]
    assert tune.main([*start, *flags]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (settings.home / "runs").exists()

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from factory import config
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.evaluation.suite import Case, Suite, write
from factory.ledger import promotions
from factory.ledger.store import open_ledger
from pipelines import evaluate
from pipelines.closing import REFUSED
from tests.training import tiny

Run = Callable[..., tuple[int, dict[str, Any], str]]


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A random adapter of the tiny model."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a pulled tiny model, a suite, and a gate that anything passes."""
    raw = yaml.safe_load(config.default_text())
    raw["home"] = str(tmp_path / "home")
    raw["models"]["smollm2-135m"]["source"] = {"path": str(tiny_base)}
    raw["models"]["smollm2-135m"]["max_model_len"] = 512
    lenient = {"min": 0.0, "better_than_base": False, "no_worse_than_champion": 1.0}
    raw["gates"] = {"helpdesk": {"accuracy": lenient, "min_cases": 1}}
    file = tmp_path / "factory.yaml"
    file.write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("FACTORY_CONFIG", str(file))
    monkeypatch.setenv("FACTORY_CODE_COMMIT", "c0ffee")
    settings = config.load()
    store = ObjectStore(settings.objects)
    pull(settings, "smollm2-135m", store)
    cases = [
        Case.model_validate({"id": item.id, "messages": item.chat[:-1], "expected": item.label})
        for item in tiny.examples(12)
    ]
    suite = Suite.build(name="helpdesk", version=1, labels=tuple(tiny.WORDS), cases=cases)
    store.put("suites", "helpdesk", lambda folder: _done(write(suite, folder / "helpdesk.suite")))
    return settings.home


def _done(_: object) -> None:
    return None


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; gives exit code, closing JSON object and standard error."""

    def call(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = evaluate.main(arguments)
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return call


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_base, tmp_path / "adapter", seed=1)


def change_gate(home: Path, **accuracy: object) -> None:
    file = home.parent / "factory.yaml"
    raw = yaml.safe_load(file.read_text())
    raw["gates"]["helpdesk"]["accuracy"].update(accuracy)
    file.write_text(yaml.safe_dump(raw))


def test_judged_registered_and_promoted(run: Run, adapter: Path, tiny_base: Path) -> None:
    code, closing, err = run("--adapter", str(adapter), "--promote")
    assert code == 0
    assert (closing["version"], closing["promoted"], closing["cases"]) == (1, True, 12)
    assert closing["champion"] is None
    assert closing["against_base"]["cases"] == 12
    assert Path(closing["candidate"]["results"], "cases.jsonl").is_file()
    assert "judging candidate: 12/12" in err
    assert "against base" in err

    code, again, _ = run("--promote")
    assert (code, again["version"]) == (0, 1)
    assert again["base"]["reused"]
    assert again["candidate"]["reused"]

    second = make_adapter(tiny_base, adapter.parent / "second", seed=2)
    code, closing, err = run("--adapter", str(second), "--promote", "--limit", "8")
    assert (code, closing["version"], closing["cases"]) == (0, 2, 8)
    assert closing["champion"]["version"] == 1
    assert closing["against_champion"]["cases"] == 8
    assert "against champion" in err


def test_a_dry_run_says_who_is_judged_and_what_is_known_already(
    run: Run, home: Path, adapter: Path
) -> None:
    code, new, err = run("--adapter", str(adapter), "--dry-run")
    assert (code, new["dry_run"], new["cases"]) == (0, True, 12)
    assert new["judged_before"] == {"base": False, "candidate": False}
    assert new["tokens"] > 12
    assert new["seconds"] >= 0
    assert set(new["cost_nusd"]) == set(config.load().pools)
    assert "cost" in err
    assert not ObjectStore(config.load().objects).list("evaluations")
    run("--adapter", str(adapter))
    _, again, _ = run("--adapter", str(adapter), "--dry-run")
    assert again["judged_before"] == {"base": True, "candidate": True}


def test_refusal_is_exit_code_3_and_logged(run: Run, home: Path, adapter: Path) -> None:
    change_gate(home, min=1.0)
    code, closing, err = run("--adapter", str(adapter), "--promote")
    assert (code, closing["promoted"]) == (REFUSED, False)
    assert "refused: accuracy" in err
    ledger = open_ledger(config.load().database_url)
    try:
        assert [entry.action for entry in promotions.history(ledger, "helpdesk")] == ["refuse"]
    finally:
        ledger.close()


def test_lineage_comes_from_the_tuning(run: Run, home: Path, adapter: Path) -> None:
    store = ObjectStore(config.load().objects)
    base = store.find("models", "smollm2-135m")
    assert base is not None
    meta = {
        "config": {"model": "smollm2-135m", "seed": 7, "lora_r": 2},
        "data_hash": "d" * 64,
        "base_revision": base.hash,
        "libraries": {"peft": "0.0.1"},
    }

    def fill(folder: Path) -> None:
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    stored = store.put("adapters", "helpdesk", fill, meta)
    code, closing, _ = run("--adapter", stored.hash[:8])
    assert (code, closing["promoted"]) == (0, None)
    assert run("--adapter", str(adapter))[1]["version"] == closing["version"]
    (kept,) = store.list("lineage")
    lineage = json.loads((kept.path / "lineage.json").read_text())
    assert (lineage["data_hash"], lineage["seeds"]) == ("d" * 64, {"train": 7})
    assert (lineage["base_hash"], lineage["versions"]["peft"]) == (base.hash, "0.0.1")

    store.put("adapters", "helpdesk", fill, {**meta, "base_revision": "e" * 64})
    code, _, err = run()
    assert code == 1
    assert "was tuned on smollm2-135m eeeeeeeeeeee" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no adapter 'helpdesk' in the object store"),
        (("--adapter", "0123456789ab"), "neither a folder nor the hash"),
        (("--adapter", "."), "has no adapter_config.json"),
        (("--suite", "none.suite"), "cannot read the suite"),
        (("--name", "other"), "there is no suite 'other' in the object store"),
        (("--limit", "0"), "at least one case"),
    ],
)
def test_what_is_missing_is_one_sentence(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    code, closing, err = run(*arguments)
    assert (code, closing) == (1, {})
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_that_is_not_pulled_is_named(run: Run, home: Path, adapter: Path) -> None:
    (home / "objects" / "models").rename(home / "objects" / "gone")
    code, _, err = run("--adapter", str(adapter))
    assert code == 1
    assert "run `factory models pull smollm2-135m`" in err

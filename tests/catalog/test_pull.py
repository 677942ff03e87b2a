from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.catalog import weights
from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import find, pull
from factory.config import Settings

from .conftest import COMMIT, Hub

Catalog = Callable[[dict[str, Any]], Settings]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folder_is_copied_checked_and_recorded(
    folder: Path, catalog: Catalog, store: ObjectStore
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    settings = catalog({"path": str(folder)})
    said: list[str] = []
    item = pull(settings, "m", store, said.append)
    names = {path.name for path in item.path.iterdir()}
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= names
    assert "pytorch_model.bin" not in names
    assert item.meta["source"] == {"path": str(folder)}
    assert item.meta["revision"] == "local"
    assert len(item.meta["config_hash"]) == len(item.meta["chat_template_hash"]) == 64
    assert any("copying" in text for text in said)
    assert find(settings, "m", store) == item


def test_the_pulled_model_answers_like_the_source(
    folder: Path, catalog: Catalog, store: ObjectStore
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    item = pull(catalog({"path": str(folder)}), "m", store)
    tokens = torch.tensor([[1, 2, 3]])
    logits = [
        AutoModelForCausalLM.from_pretrained(path)(tokens).logits for path in (folder, item.path)
    ]
    assert torch.equal(*logits)


def test_a_second_pull_does_nothing_and_refresh_fetches_again(
    folder: Path, catalog: Catalog, store: ObjectStore
) -> None:
    settings = catalog({"path": str(folder)})
    first = pull(settings, "m", store)
    (folder / "chat_template.jinja").write_text("changed")
    assert pull(settings, "m", store) == first
    second = pull(settings, "m", store, refresh=True)
    assert second.meta["chat_template_hash"] != first.meta["chat_template_hash"]
    assert second.meta["config_hash"] == first.meta["config_hash"]


def test_the_same_weights_from_another_folder_have_the_same_hash(
    folder: Path, tmp_path: Path, catalog: Catalog, store: ObjectStore
) -> None:
    first = pull(catalog({"path": str(folder)}), "m", store)
    copy = shutil.copytree(folder, tmp_path / "copy")
    moved = catalog({"path": str(copy)})
    assert find(moved, "m", store) is None
    assert pull(moved, "m", store).hash == first.hash
    assert find(moved, "m", store) is not None


def test_a_relative_path_is_looked_up_beside_the_configuration(
    folder: Path, catalog: Catalog, store: ObjectStore
) -> None:
    assert pull(catalog({"path": "model"}), "m", store).meta["source"] == {"path": str(folder)}


def test_two_pulls_at_once_do_the_work_once(
    folder: Path, tmp_path: Path, store: ObjectStore
) -> None:
    code = """
import sys
from pathlib import Path
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import load
settings = load(Path(sys.argv[1]))
said = []
item = pull(settings, "m", ObjectStore(settings.objects), said.append)
print(item.hash, sum("copying" in text for text in said))
"""
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
    model = {"source": {"path": str(folder)}, "engine": "vllm", "tier": 1, "price": price}
    config = tmp_path / "factory.yaml"
    config.write_text(json.dumps({"models": {"m": model}, "teams": {}, "endpoints": {}}))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(config)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [child.communicate(timeout=60)[0].split() for child in children]
    assert answers[0][0] == answers[1][0]
    assert sorted(answer[1] for answer in answers) == ["0", "1"]


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def damage_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def damage_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_no_weights, "has no weights"),
        (damage_only_pickles, "only pickled weights, which can run code"),
        (damage_no_config, "has no config.json"),
        (damage_cut_short, "is cut short"),
        (damage_not_safetensors, "is not a safetensors file"),
        (damage_missing_shard, "lacks the weights file 'model-00001-of-00002.safetensors'"),
        (damage_bad_config, "'config.json' of .* is not valid JSON"),
        (damage_all, "does not exist; correct the model's source.path"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(
    folder: Path,
    catalog: Catalog,
    store: ObjectStore,
    damage: Callable[[Path], None],
    sentence: str,
) -> None:
    damage(folder)
    with pytest.raises(CatalogError, match=sentence):
        pull(catalog({"path": str(folder)}), "m", store)
    assert store.list("models") == []


def test_unknown_models_and_providers_are_refused(catalog: Catalog, store: ObjectStore) -> None:
    settings = catalog({"base_url": "http://127.0.0.1:1/v1", "model": "big", "api_key": "k"})
    with pytest.raises(CatalogError, match="no model 'other'; it has m"):
        pull(settings, "other", store)
    with pytest.raises(CatalogError, match="nothing to pull"):
        pull(settings, "m", store)


def test_a_package_that_is_not_there_is_one_sentence(catalog: Catalog, store: ObjectStore) -> None:
    with pytest.raises(CatalogError, match="'no-such-package' is not installed; run `pip install"):
        pull(catalog({"package": "no-such-package", "file": "x.gguf"}), "m", store)
    with pytest.raises(CatalogError, match=r"'pytest' has no file 'x\.gguf'"):
        pull(catalog({"package": "pytest", "file": "x.gguf"}), "m", store)


def test_a_damaged_gguf_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog: Catalog, store: ObjectStore
) -> None:
    package = tmp_path / "lib" / "weights_inside"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its own dependencies are absent')")
    (package / "x.gguf").write_bytes(b"GGUF, but no more of it")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(CatalogError, match="cannot be read as a GGUF model"):
        pull(catalog({"package": "weights-inside", "file": "x.gguf"}), "m", store)
    assert store.list("models") == []


def test_a_package_folder_of_safetensors_is_copied_without_importing_the_package(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    catalog: Catalog,
    store: ObjectStore,
) -> None:
    package = tmp_path / "lib" / "folder_inside"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its own dependencies are absent')")
    shutil.copytree(folder, package / "model")
    (package / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    settings = catalog({"package": "folder-inside", "file": "model"})
    item = pull(settings, "m", store)
    store.verify(item)
    assert item.hash == pull(catalog({"path": str(folder)}), "m", store).hash
    assert "pytorch_model.bin" not in item.files
    assert item.meta["source"] == {"package": "folder-inside", "file": "model"}


def test_a_distribution_with_another_import_name_is_found_by_its_record(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    catalog: Catalog,
    store: ObjectStore,
) -> None:
    site = tmp_path / "site"
    shutil.copytree(folder, site / "other_name" / "model")
    info = site / "sold_as-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sold-as\nVersion: 1.2\n")
    (info / "RECORD").write_text("other_name/model/model.safetensors,,\n")
    monkeypatch.syspath_prepend(site)
    item = pull(catalog({"package": "sold-as", "file": "model"}), "m", store)
    assert item.meta["revision"] == "1.2"
    assert "model.safetensors" in item.files


def test_a_package_folder_without_weights_or_outside_the_package_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    catalog: Catalog,
    store: ObjectStore,
) -> None:
    package = tmp_path / "lib" / "no_weights_inside"
    (package / "model").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(CatalogError, match="package no-weights-inside has no weights"):
        pull(catalog({"package": "no-weights-inside", "file": "model"}), "m", store)
    with pytest.raises(CatalogError, match="leads out of the package"):
        pull(catalog({"package": "no-weights-inside", "file": "../../model"}), "m", store)
    assert store.list("models") == []


def test_the_hub_gives_safetensors_and_its_commit(
    hub: Hub, catalog: Catalog, store: ObjectStore, tiny_model: Path
) -> None:
    item = pull(catalog({"hub": "org/tiny"}), "m", store)
    assert item.meta["revision"] == COMMIT
    assert item.meta["source"] == {"hub": "org/tiny", "revision": "main"}
    assert set(item.files) == {path.name for path in tiny_model.iterdir()}
    assert not any("bin" in name or "README" in name for name in hub.requested)
    asked = len(hub.requested)
    assert pull(catalog({"hub": "org/tiny"}), "m", store) == item
    assert len(hub.requested) == asked


def test_a_killed_download_leaves_no_half_model_and_goes_on_later(
    hub: Hub, catalog: Catalog, store: ObjectStore, tmp_path: Path
) -> None:
    hub.files["model.safetensors"] = big_safetensors(4_000_000)
    hub.stall_after = 3_000_000
    code = """
import sys
from pathlib import Path
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.config import load
pull(load(Path(sys.argv[1])), "m", ObjectStore(Path(sys.argv[2])))
"""
    settings = catalog({"hub": "org/tiny"})
    config = tmp_path / "factory.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json", by_alias=True)))
    with subprocess.Popen([sys.executable, "-c", code, str(config), str(store.root)]) as child:
        assert hub.stalled.wait(60)
        child.send_signal(signal.SIGKILL)
    assert store.list("models") == []
    hub.stall_after = None
    hub.released.set()
    item = pull(settings, "m", store)
    store.verify(item)
    assert not list((store.root / ".downloads").iterdir())


def test_a_hub_without_safetensors_is_refused(
    hub: Hub, catalog: Catalog, store: ObjectStore
) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(CatalogError, match="only pickled weights"):
        pull(catalog({"hub": "org/tiny"}), "m", store)
    assert hub.requested == []


def test_an_unknown_repository_is_one_sentence(
    hub: Hub, catalog: Catalog, store: ObjectStore
) -> None:
    with pytest.raises(CatalogError, match="no public model 'org/other'"):
        pull(catalog({"hub": "org/other"}), "m", store)


def test_a_hub_out_of_reach_is_one_sentence(
    catalog: Catalog, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CatalogError, match="hub is out of reach for org/tiny"):
        pull(catalog({"hub": "org/tiny"}), "m", store)


def test_only_data_formats_of_the_top_folder_are_wanted() -> None:
    offered = [
        "config.json",
        "model-00001-of-00001.safetensors",
        "tokenizer.model",
        "onnx/model.onnx",
        "original/consolidated.safetensors",
        "consolidated.safetensors",
        "modeling_custom.py",
        "pytorch_model.bin",
        "training_args.bin",
    ]
    assert weights.wanted(offered) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "tokenizer.model",
    ]


@pytest.mark.engine
def test_the_packaged_model_is_converted_whole(model_dir: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in model_dir.iterdir()
    }
    assert not hasattr(AutoConfig.from_pretrained(model_dir), "quantization_config")
    chat = [{"role": "user", "content": "hello"}]
    text = AutoTokenizer.from_pretrained(model_dir).apply_chat_template(chat, tokenize=False)
    assert "<|im_start|>user\nhello<|im_end|>" in text


def big_safetensors(size: int) -> bytes:
    """A valid safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)

"""The serving plan: which engines are deployed and who answers on which tier."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory import config
from factory.catalog.objects import Object
from factory.config import ConfigError, Settings
from serve_apps.engine import EngineSpec, engine_environment, engine_kwargs
from serve_apps.serving import Champion, adapters_in_use, plan, registered_name


def _object(kind: str, name: str, digest: str) -> Object:
    path = Path("/objects") / kind / name / digest
    return Object(kind, name, digest * 8, path, {}, datetime(2026, 1, 1, tzinfo=UTC))


BASE = _object("models", "smollm2-135m", "aaaaaaaa")
MERGED = _object("merged", "smollm2-135m-x", "bbbbbbbb")


@pytest.fixture
def settings() -> Settings:
    return config.parse(config.default_text(), "default", Path("/"), {})


def test_the_base_answers_until_a_version_is_promoted(settings: Settings) -> None:
    planned = plan(settings, {"smollm2-135m": BASE}, {("smollm2-135m", "helpdesk"): None})

    tier = planned.tiers["helpdesk"][1]
    assert tier.label == "smollm2-135m"
    assert planned.engines[tier.engine or ""].path == str(BASE.path)
    assert any("no version of 'helpdesk' is promoted" in note for note in planned.notes)


def test_a_champion_is_served_merged_and_changes_the_version(settings: Settings) -> None:
    before = plan(settings, {"smollm2-135m": BASE}, {})
    champions = {("smollm2-135m", "helpdesk"): Champion(version=3, merged=MERGED)}
    after = plan(settings, {"smollm2-135m": BASE}, champions)

    old, new = before.tiers["helpdesk"][1], after.tiers["helpdesk"][1]
    assert new.label == "smollm2-135m:helpdesk@3"
    assert new.version != old.version, "the cache key must change with the weights"
    assert new.engine == old.engine, "the deployment keeps its name, so that it rolls over"
    assert after.engines[new.engine or ""].path == str(MERGED.path)
    assert after.notes == ()


def test_endpoints_with_the_same_weights_share_one_engine(settings: Settings) -> None:
    planned = plan(settings, {"smollm2-135m": BASE}, {})

    assert len(planned.engines) == 1
    assert planned.tiers["helpdesk"][1].engine == planned.tiers["helpdesk-batch"][1].engine


def test_a_provider_has_a_place_on_the_ladder_and_no_engine(settings: Settings) -> None:
    planned = plan(settings, {"smollm2-135m": BASE}, {})

    assert planned.tiers["helpdesk"][3].engine is None
    assert 3 not in planned.tiers["helpdesk-batch"]


def test_adapters_in_use_names_what_the_registry_is_asked_for(settings: Settings) -> None:
    assert adapters_in_use(settings) == {("smollm2-135m", "helpdesk"): "helpdesk"}


@pytest.mark.parametrize("uri", ["models:/helpdesk/3", "models:/helpdesk@latest", "helpdesk", ""])
def test_only_a_champion_is_served(uri: str) -> None:
    with pytest.raises(ConfigError, match="only a promoted version"):
        registered_name(uri)


def test_a_gpu_replica_uses_its_gpus_and_no_cpu_settings() -> None:
    spec = EngineSpec(model_id="m", path="/m", num_gpus=2)

    assert engine_kwargs(spec)["tensor_parallel_size"] == 2
    assert "enforce_eager" not in engine_kwargs(spec)
    assert not any(name.startswith("VLLM_CPU") for name in engine_environment(spec, cores=8))


def test_engine_arguments_of_the_configuration_win() -> None:
    spec = EngineSpec(model_id="m", path="/m", engine_kwargs={"max_num_seqs": 4})

    assert engine_kwargs(spec)["max_num_seqs"] == 4

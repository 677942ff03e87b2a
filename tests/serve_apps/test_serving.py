"""The serving plan: which engines are deployed and who answers on which tier."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory import config
from factory.catalog.objects import Object
from factory.config import ConfigError, Settings
from factory.scaling import Target
from serve_apps.embedder import EmbedderSpec, embedder_app
from serve_apps.engine import engine_app
from serve_apps.engine_spec import (
    EngineSpec,
    actor_options,
    budgets,
    engine_environment,
    engine_kwargs,
    replicas,
)
from serve_apps.serving import Champion, adapters_in_use, folded, plan, registered_name


def _object(kind: str, name: str, digest: str) -> Object:
    path = Path("/objects") / kind / name / digest
    return Object(kind, name, digest * 8, path, {}, datetime(2026, 1, 1, tzinfo=UTC))


BASE = _object("models", "smollm2-135m", "aaaaaaaa")
ENCODER = _object("models", "minilm", "cccccccc")
DEFAULT_BASES = {"smollm2-135m": BASE, "minilm": ENCODER}
MERGED = _object("merged", "smollm2-135m-x", "bbbbbbbb")


@pytest.fixture
def settings() -> Settings:
    return config.parse(config.default_text(), "default", Path("/"), {})


def test_the_base_answers_until_a_version_is_promoted(settings: Settings) -> None:
    planned = plan(settings, DEFAULT_BASES, {("smollm2-135m", "helpdesk"): None})

    tier = planned.tiers["helpdesk"][1]
    assert tier.label == "smollm2-135m"
    assert planned.engines[tier.engine or ""].path == str(BASE.path)
    assert any("no version of 'helpdesk' is promoted" in note for note in planned.notes)


def test_a_champion_is_served_merged_and_changes_the_version(settings: Settings) -> None:
    before = plan(settings, DEFAULT_BASES, {})
    champions = {("smollm2-135m", "helpdesk"): Champion(version=3, merged=MERGED)}
    after = plan(settings, DEFAULT_BASES, champions)

    old, new = before.tiers["helpdesk"][1], after.tiers["helpdesk"][1]
    assert new.label == "smollm2-135m:helpdesk@3"
    assert new.version != old.version, "the cache key must change with the weights"
    assert new.engine == old.engine, "the deployment keeps its name, so that it rolls over"
    assert after.engines[new.engine or ""].path == str(MERGED.path)
    assert after.notes == ()


STUDENT = """\
  helpdesk-student:
    source: {registry: "models:/helpdesk-student@champion"}
    engine: vllm
    tier: 2
    price: {input_usd_per_mtok: 0.01, output_usd_per_mtok: 0.02}
"""


def test_a_model_of_the_registry_takes_its_tier_once_a_version_is_promoted() -> None:
    text = config.default_text().replace("  premium:\n", f"{STUDENT}  premium:\n", 1)
    text = text.replace("tiers: [0, 1, 3]", "tiers: [0, 1, 2, 3]")
    settings = config.parse(text, "default", Path("/"), {})
    without = plan(settings, DEFAULT_BASES, {})
    assert set(without.tiers["helpdesk"]) == {1, 3}
    assert any("'helpdesk-student' is promoted yet, so tier 2" in note for note in without.notes)

    weights = _object("weights", "helpdesk-student", "dddddddd")
    planned = plan(settings, DEFAULT_BASES | {"helpdesk-student": weights}, {})
    tier = planned.tiers["helpdesk"][2]
    assert (tier.label, tier.version) == ("helpdesk-student", weights.hash[:16])
    assert planned.engines[tier.engine or ""].path == str(weights.path)


def test_endpoints_with_the_same_weights_share_one_engine(settings: Settings) -> None:
    planned = plan(settings, DEFAULT_BASES, {})

    assert len(planned.engines) == 1
    assert planned.tiers["helpdesk"][1].engine == planned.tiers["helpdesk-batch"][1].engine


def test_what_users_wait_for_is_kept_off_spot_and_one_machine_needs_no_labels(
    settings: Settings,
) -> None:
    alone = plan(settings, DEFAULT_BASES, {})
    assert [spec.nodes for spec in alone.engines.values()] == [{}]
    text = config.default_text().replace("\npools:", "\npools:" + SPOT, 1)
    planned = plan(config.parse(text, "t", Path("/"), {}), DEFAULT_BASES, {})
    engine = planned.engines["engine-smollm2-135m-helpdesk"]
    assert engine.nodes == planned.nodes == {"factory/pool": "in(onprem)"}
    assert actor_options(engine, 2)["label_selector"] == engine.nodes
    assert planned.embedders["embedder-minilm"].nodes == {}  # its endpoint is no production


SPOT = """
  spot: {provider: aws, usd_per_hour: 1, spot_policy: spot, max_nodes: 2}"""


def test_a_provider_has_a_place_on_the_ladder_and_no_engine(settings: Settings) -> None:
    planned = plan(settings, DEFAULT_BASES, {})

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


def _adapted(config_text: str) -> Settings:
    return config.parse(config_text, "test", Path("/"), {})


MULTI = """
teams: {support: {}}
models:
  base:
    source: {path: weights}
    engine: vllm
    tier: 1
    price: {input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}
    adapters: {one: "models:/one@champion", two: "models:/two@champion"}
    engine_kwargs: {enable_lora: true}
  minilm:
    source: {path: encoder}
    engine: encoder
    tier: 1
    price: {input_usd_per_mtok: 0.01, output_usd_per_mtok: 0}
endpoints:
  first: {team: support, tiers: [0, 1], adapter: one}
  second: {team: support, tiers: [0, 1], adapter: %s}
  search: {team: support, tiers: [1], task: embed}
"""
ENCODER = _object("models", "minilm", "cccccccc")
BASES = {"base": BASE, "minilm": ENCODER}
ONE = Champion(version=2, path=Path("/adapters/one"), rank=8)
TWO = Champion(version=5, path=Path("/adapters/two"), rank=24)


def test_an_only_adapter_stays_folded_and_its_sibling_can_be_asked_for_by_name() -> None:
    settings = _adapted(MULTI % "one")
    folded_one = Champion(version=2, merged=MERGED, path=ONE.path)
    planned = plan(settings, BASES, {("base", "one"): folded_one, ("base", "two"): TWO})

    assert folded(settings) == {("base", "one")}
    assert planned.tiers["first"][1].engine == "engine-base-one"
    assert planned.tiers["first"][1].lora is None
    assert "enable_lora" not in engine_kwargs(planned.engines["engine-base-one"])
    shared = planned.engines["engine-base"]
    assert engine_kwargs(shared)["enable_lora"] is True
    assert engine_kwargs(shared)["max_lora_rank"] == 32
    assert shared.adapters["base:two@5"] == "/adapters/two"
    two = planned.pinned["base:two"]
    assert (two.engine, two.lora, two.adapter) == ("engine-base", "base:two@5", "two")
    assert planned.pinned["base:two@5"] == two
    assert planned.pinned["base:one"].engine == "engine-base-one"
    assert planned.pinned["base"].engine == "engine-base"


def test_several_worn_adapters_share_one_engine() -> None:
    settings = _adapted(MULTI % "two")
    planned = plan(settings, BASES, {("base", "one"): ONE, ("base", "two"): TWO})

    assert folded(settings) == set()
    assert set(planned.engines) == {"engine-base"}
    tiers = [planned.tiers[name][1] for name in ("first", "second")]
    assert [tier.lora for tier in tiers] == ["base:one@2", "base:two@5"]
    assert len({tier.version for tier in tiers} | {planned.pinned["base"].version}) == 3


def test_without_enable_lora_only_what_is_deployed_can_be_asked_for() -> None:
    settings = _adapted((MULTI % "one").replace("{enable_lora: true}", "{}"))
    planned = plan(settings, BASES, {("base", "one"): Champion(version=2, merged=MERGED)})

    assert set(planned.engines) == {"engine-base-one"}
    assert set(planned.pinned) == {"base:one", "base:one@2", "minilm"}
    assert adapters_in_use(settings) == {("base", "one"): "one"}


def test_an_embed_endpoint_gets_an_embedder_and_no_engine() -> None:
    planned = plan(_adapted(MULTI % "one"), BASES, {})

    tier = planned.tiers["search"][1]
    assert (tier.model, tier.engine) == ("minilm", "embedder-minilm")
    assert planned.embedders["embedder-minilm"].path == str(ENCODER.path)
    assert "embedder-minilm" not in planned.engines
    assert planned.tiers["first"][1].model == "base"


def test_new_adapters_do_not_restart_an_engine_and_new_weights_do() -> None:
    spec = EngineSpec(model_id="m", path="/m", max_lora_rank=16, adapters={"a": "/a"})

    def version(changed: EngineSpec) -> str:
        return engine_app(changed, name="e", cores=2)._bound_deployment._version

    assert version(spec) == version(replace(spec, adapters={"a": "/a", "b": "/b"}))
    assert version(spec) != version(replace(spec, path="/other"))


def test_tools_are_recognized_where_the_configuration_names_a_parser() -> None:
    text = (MULTI % "one").replace("enable_lora: true", "tool_call_parser: hermes")
    planned = plan(_adapted(text), BASES, {})

    assert planned.tiers["first"][1].tools
    assert engine_kwargs(planned.engines["engine-base-one"])["enable_auto_tool_choice"] is True
    assert not plan(_adapted(MULTI % "one"), BASES, {}).tiers["first"][1].tools


def _with_class(name: str, scaling: str = "") -> EngineSpec:
    """The engine of the default configuration with its `helpdesk` in another class."""
    text = config.default_text().replace("class: production", f"class: {name}", 1)
    settings = config.parse(
        text.replace("    tier: 1\n", f"    tier: 1\n{scaling}", 1), "x", Path("/"), {}
    )
    planned = plan(settings, DEFAULT_BASES, {})
    return planned.engines[planned.tiers["helpdesk"][1].engine or ""]


def test_production_keeps_a_floor_and_the_others_may_sleep() -> None:
    production, internal = _with_class("production"), _with_class("internal")
    assert replicas(production) == {"num_replicas": 1}
    scaled = replicas(internal)["autoscaling_config"]
    assert (scaled.min_replicas, scaled.max_replicas) == (0, 1)
    assert internal.target.idle_after_s == 600
    assert scaled.initial_replicas == 1, "weights that do not load must fail the deployment"


def test_a_standby_is_one_replica_that_sleeps_by_itself_where_there_is_no_floor() -> None:
    wanted = "    scaling: {standby: true}\n"
    assert _with_class("internal", wanted).standby
    assert replicas(_with_class("internal", wanted)) == {"num_replicas": 1}
    assert not _with_class("production", wanted).standby


def test_an_embedder_sleeps_where_no_production_endpoint_needs_it() -> None:
    def embedder(class_: str) -> EmbedderSpec:
        text = (MULTI % "one").replace("task: embed", f"task: embed, class: {class_}")
        return plan(_adapted(text), BASES, {}).embedders["embedder-minilm"]

    production, batch = embedder("production"), embedder("batch")
    assert (production.target.min_replicas, batch.target.min_replicas) == (1, 0)
    assert batch.target.idle_after_s == 60
    one = embedder_app(production, name="e", cores=2)._bound_deployment
    other = embedder_app(batch, name="e", cores=2)._bound_deployment
    assert one._deployment_config.autoscaling_config is None
    assert other._deployment_config.autoscaling_config.min_replicas == 0
    assert one._version == other._version, "new bounds restart nothing"


def test_engines_that_scale_share_what_the_others_leave_of_the_cluster() -> None:
    always = EngineSpec(model_id="a", path="/a", target=Target(min_replicas=1))
    noisy = EngineSpec(model_id="b", path="/b", target=Target(max_replicas=8), class_="internal")
    large = replace(noisy, num_gpus=2, class_="production", priority=51)

    shared = budgets([always, noisy, large], {"CPU": 4.0, "GPU": 8.0}, fixed=0.4)
    assert shared == {"CPU": pytest.approx(3.1), "GPU": 8.0}
    found = replicas(large, 1, shared)["autoscaling_config"].policy.policy_kwargs["share"]
    assert found == {
        "budget": 8.0,
        "unit": 2.0,
        "resource": "GPU",
        "class_": "production",
        "priority": 51,
    }
    assert replicas(always, 1, shared) == {"num_replicas": 1}
    assert budgets([always] * 3, {"CPU": 1.0}, fixed=0.4)["CPU"] == 0


def test_a_plan_says_how_much_an_engine_matters() -> None:
    assert _with_class("production").class_ == "production"
    assert _with_class("internal").class_ == "internal", "helpdesk-batch shares it"
    assert _with_class("production").priority > 1


def test_a_new_floor_does_not_restart_an_engine() -> None:
    spec = EngineSpec(model_id="a", path="/a")
    asleep = replace(spec, target=Target(min_replicas=0, max_replicas=3, idle_after_s=5))

    def version(one: EngineSpec) -> str:
        return str(engine_app(one, name="a", cores=2)._bound_deployment.version)

    assert version(spec) == version(asleep)
    assert version(asleep) != version(replace(asleep, standby=True))

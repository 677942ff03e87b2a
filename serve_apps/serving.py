"""Which engines to deploy and which tier of which endpoint each of them answers: a pure plan.

planned = plan(settings, bases, champions)
planned.engines["engine-smollm2-135m-helpdesk"].path
planned.tiers["helpdesk"][1].label                     # smollm2-135m:helpdesk@3
planned.pinned["smollm2-135m:helpdesk"].engine         # who answers a request for just this model

An adapter is folded into its base where it can be: served at request time it is about three times
slower on a CPU. A model whose `engine_kwargs` say `enable_lora: true` also gets one engine that
holds all its promoted adapters beside each other. It answers requests that name one of them, and it
answers the endpoints themselves once they wear two or more different adapters of that model, since
an engine for each would hold the base's weights as many times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from factory.catalog.objects import Object
from factory.cluster.hosting import hosts
from factory.config import (
    ConfigError,
    Endpoint,
    Model,
    ProviderSource,
    RegistrySource,
    Settings,
)
from factory.scaling.target import class_of, of_endpoints
from serve_apps.embedder import EmbedderSpec
from serve_apps.engine_spec import EngineSpec

LORA_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`, from its default on."""

_CHAMPION = re.compile(r"models:/(?P<name>[\w.-]+)@champion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """A promoted adapter, ready to serve."""

    version: int
    """Version in the registry."""
    merged: Object | None = None
    """Folded into its base, in the object store; None where `folded` does not ask for it."""
    path: Path | None = None
    """Folder of the adapter itself, for an engine that holds several."""
    rank: int = LORA_RANKS[0]
    """`r` in its `adapter_config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPlan:
    """Who answers on one tier of one endpoint, or to one model's name."""

    model: str
    tier: int
    version: str
    """Changes with the weights; part of every cache key."""
    label: str
    """Shown to clients."""
    engine: str | None
    """Name of the deployment; None for a provider."""
    path: str | None
    """Folder with the tokenizer; None for a provider."""
    adapter: str | None = None
    """The adapter it wears."""
    lora: str | None = None
    """What a multi-adapter engine must be asked for; None for the model it has loaded."""
    tools: bool = True
    """Its engine recognizes tool calls: a provider's, or one with a `tool_call_parser`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """Everything `serve_apps.up` deploys."""

    engines: Mapping[str, EngineSpec]
    tiers: Mapping[str, Mapping[int, TierPlan]]
    static: str | None = None
    """Folder of the static embedder, for the semantic cache and learned routers; None without."""
    notes: tuple[str, ...]
    """What a person should know, for example that an endpoint answers with its base."""
    embedders: Mapping[str, EmbedderSpec] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Label selector of the nodes that may hold the gateway; empty lets any."""
    pinned: Mapping[str, TierPlan] = field(default_factory=dict)
    """By what a request may name instead of an endpoint: `MODEL`, `MODEL:ADAPTER`,
    `MODEL:ADAPTER@VERSION`."""


def registered_name(uri: str) -> str:
    """`helpdesk` of `models:/helpdesk@champion`.

    Raises `ConfigError` for any other form: nothing but a champion is served.
    """
    found = _CHAMPION.fullmatch(uri)
    if found is None:
        raise ConfigError(
            f"the adapter '{uri}' is not of the form models:/NAME@champion; "
            "only a promoted version is served"
        )
    return found["name"]


def multi_adapter(model: Model) -> bool:
    """Whether this model gets an engine that holds several adapters."""
    return model.engine == "vllm" and bool(model.engine_kwargs.get("enable_lora"))


def adapters_in_use(settings: Settings) -> dict[tuple[str, str], str]:
    """Registered name by (model, adapter) for every adapter that is served once promoted."""
    found = {
        (name, adapter): registered_name(settings.models[name].adapters[adapter])
        for name, adapter in _worn(settings)
    }
    for name, model in settings.models.items():
        if multi_adapter(model):
            found |= {(name, one): registered_name(uri) for one, uri in model.adapters.items()}
    return found


def folded(settings: Settings) -> set[tuple[str, str]]:
    """The (model, adapter) pairs that are served folded into their base."""
    worn = _worn(settings)
    return {
        (name, adapter)
        for name, adapter in worn
        if not multi_adapter(settings.models[name]) or sum(name == one for one, _ in worn) == 1
    }


def _worn(settings: Settings) -> list[tuple[str, str]]:
    """Every (model, adapter) that some endpoint wears, once."""
    found = {
        (name, endpoint.adapter): None
        for endpoint in settings.endpoints.values()
        for name, model in settings.ladder(endpoint)
        if endpoint.adapter and endpoint.adapter in model.adapters
    }
    return list(found)


def plan(
    settings: Settings,
    bases: Mapping[str, Object],
    champions: Mapping[tuple[str, str], Champion | None],
    static: Object | None = None,
) -> ServingPlan:
    """The deployments and the ladder of every endpoint.

    `bases` are the pulled weights by model; `champions` the promoted adapter by (model, adapter),
    None where none is promoted yet, in which case the base answers and a note says so.
    Raises `ClusterError` for an engine that no pool may hold.
    """
    planning = _Planning(settings, bases, champions)
    for endpoint_name, endpoint in settings.endpoints.items():
        for name, _ in settings.ladder(endpoint):
            planning.place(endpoint_name, endpoint, name)
    planning.pin()
    planning.bound(settings)
    planning.settle(settings)
    return ServingPlan(
        engines=planning.engines,
        embedders=planning.embedders,
        tiers=planning.tiers,
        pinned=planning.pinned,
        nodes=_selector(settings, settings.endpoints.values()),
        static=None if static is None else str(static.path),
        notes=tuple(planning.notes),
    )


class _Planning:
    """A plan in the making."""

    def __init__(
        self,
        settings: Settings,
        bases: Mapping[str, Object],
        champions: Mapping[tuple[str, str], Champion | None],
    ) -> None:
        self._models = settings.models
        self._bases = bases
        self._champions = champions
        self._folded = folded(settings)
        self.engines: dict[str, EngineSpec] = {}
        self.embedders: dict[str, EmbedderSpec] = {}
        self.tiers: dict[str, dict[int, TierPlan]] = {name: {} for name in settings.endpoints}
        self.pinned: dict[str, TierPlan] = {}
        self.notes: list[str] = []

    def place(self, endpoint_name: str, endpoint: Endpoint, name: str) -> None:
        """Put the model `name` on its tier of an endpoint."""
        model = self._models[name]
        if name not in self._bases and isinstance(model.source, RegistrySource):
            self.notes.append(
                f"endpoint {endpoint_name}: no version of '{model.source.name}' is promoted yet, "
                f"so tier {model.tier} is left out"
            )
            return
        adapter = endpoint.adapter if endpoint.adapter in model.adapters else None
        champion = self._champions.get((name, adapter)) if adapter else None
        if adapter and champion is None:
            self.notes.append(
                f"endpoint {endpoint_name}: no version of '{adapter}' is promoted yet, "
                f"so the base {name} answers"
            )
        tier = self._adapted(name, adapter, champion) if adapter and champion else None
        self.tiers[endpoint_name][model.tier] = tier or self._plain(name, adapter)

    def bound(self, settings: Settings) -> None:
        """Give all engines and embedders the replicas that their strictest endpoint asks for."""
        priorities = {name: team.priority for name, team in settings.teams.items()}
        for name, spec in [*self.engines.items(), *self.embedders.items()]:
            asking = {
                endpoint: tier.model
                for endpoint, ladder in self.tiers.items()
                for tier in ladder.values()
                if tier.engine == name
            }
            pinned = (tier.model for tier in self.pinned.values() if tier.engine == name)
            model = next(iter(asking.values()), None) or next(pinned, None)
            if model is None:
                continue
            scaling = self._models[model].scaling
            endpoints = [settings.endpoints[endpoint] for endpoint in asking]
            target = of_endpoints(
                endpoints,
                max_replicas=scaling.max_replicas,
                startup_s=scaling.startup_s,
            )
            if isinstance(spec, EmbedderSpec):
                self.embedders[name] = replace(spec, target=target)
                continue
            self.engines[name] = replace(
                spec,
                target=target,
                standby=scaling.standby and target.min_replicas == 0,
                class_=class_of(endpoints),
                priority=1 + max((priorities[one.team] for one in endpoints), default=0),
            )

    def settle(self, settings: Settings) -> None:
        """Keep engines and embedders to the pools that may hold what they answer for."""

        def nodes(deployment: str) -> dict[str, str]:
            served = (
                settings.endpoints[endpoint]
                for endpoint, ladder in self.tiers.items()
                if any(tier.engine == deployment for tier in ladder.values())
            )
            return _selector(settings, served)

        for name, engine in self.engines.items():
            self.engines[name] = replace(engine, nodes=nodes(name))
        for name, embedder in self.embedders.items():
            self.embedders[name] = replace(embedder, nodes=nodes(name))

    def pin(self) -> None:
        """Say which models may be asked for by name."""
        for name, model in self._models.items():
            if (multi_adapter(model) and name in self._bases) or model.engine == "openai":
                self.pinned[name] = self._plain(name)
            elif deployed := self._deployed(name):
                self.pinned[name] = deployed
            for adapter in model.adapters:
                champion = self._champions.get((name, adapter))
                if champion and (tier := self._adapted(name, adapter, champion)):
                    self.pinned[f"{name}:{adapter}"] = self.pinned[tier.label] = tier

    def _deployed(self, name: str) -> TierPlan | None:
        """The place on some endpoint where the model answers without an adapter."""
        found = (
            tier
            for ladder in self.tiers.values()
            for tier in ladder.values()
            if tier.model == name and tier.adapter is None
        )
        return next(found, None)

    def _plain(self, name: str, awaited: str | None = None) -> TierPlan:
        """A model without an adapter; its deployment is added where it has one.

        While the adapter `awaited` is not promoted, its deployment serves the base. It keeps its
        name from version to version, so that Serve rolls it over.
        """
        model = self._models[name]
        if isinstance(model.source, ProviderSource):
            return _tier(name, model, model.source.model, name)
        base = self._bases[name]
        path = str(base.path)
        if model.engine == "encoder":
            deployment = f"embedder-{name}"
            self.embedders[deployment] = EmbedderSpec(path=path, layers=model.layers)
        else:
            alone = awaited and not multi_adapter(model)
            deployment = f"engine-{name}-{awaited}" if alone else f"engine-{name}"
            self.engines[deployment] = self._base_engine(name, model, path)
        return _tier(name, model, base.hash[:16], name, engine=deployment, path=path)

    def _base_engine(self, name: str, model: Model, path: str) -> EngineSpec:
        if not multi_adapter(model):
            return _spec(name, model, path)
        ready = {
            adapter: champion
            for adapter in model.adapters
            if (champion := self._champions.get((name, adapter))) and champion.path
        }
        highest = max((champion.rank for champion in ready.values()), default=0)
        return _spec(
            name,
            model,
            path,
            adapters={
                _label(name, one, champion): str(champion.path) for one, champion in ready.items()
            },
            max_lora_rank=next((rank for rank in LORA_RANKS if rank >= highest), LORA_RANKS[-1]),
        )

    def _adapted(self, name: str, adapter: str, champion: Champion) -> TierPlan | None:
        """A model with an adapter: folded into it, in its multi-adapter engine, or not at all."""
        model = self._models[name]
        label = _label(name, adapter, champion)
        if champion.merged and ((name, adapter) in self._folded or not champion.path):
            deployment, path = f"engine-{name}-{adapter}", str(champion.merged.path)
            self.engines[deployment] = _spec(label, model, path)
            version = champion.merged.hash[:16]
            return _tier(name, model, version, label, deployment, path, adapter=adapter)
        if not (multi_adapter(model) and champion.path):
            return None
        base = self._plain(name)
        version = f"{base.version}+{adapter}@{champion.version}"
        return _tier(
            name, model, version, label, base.engine, base.path, adapter=adapter, lora=label
        )


def _selector(settings: Settings, served: Iterable[Endpoint]) -> dict[str, str]:
    """Ray's labels of the nodes that may hold what answers these endpoints."""
    endpoints = list(served)
    return hosts(
        settings.pools,
        [endpoint.class_ for endpoint in endpoints],
        [endpoint.sensitivity for endpoint in endpoints],
    ).selector


def _label(name: str, adapter: str, champion: Champion) -> str:
    return f"{name}:{adapter}@{champion.version}"


def _tier(
    name: str,
    model: Model,
    version: str,
    label: str,
    engine: str | None = None,
    path: str | None = None,
    **adapter: Any,
) -> TierPlan:
    return TierPlan(
        model=name,
        tier=model.tier,
        version=version,
        label=label,
        engine=engine,
        path=path,
        tools=model.engine == "openai" or "tool_call_parser" in model.engine_kwargs,
        **adapter,
    )


def _spec(model_id: str, model: Model, path: str, **lora: Any) -> EngineSpec:
    """An engine; without `lora` it gets none of the arguments about adapters."""
    chosen = {
        name: value
        for name, value in model.engine_kwargs.items()
        if lora or not ("lora" in name or name.startswith("max_cpu_lora"))
    }
    return EngineSpec(
        model_id=model_id,
        path=path,
        max_model_len=model.max_model_len,
        num_gpus=model.gpus,
        engine_kwargs=chosen,
        **lora,
    )

"""Which engines to deploy and which tier of which endpoint each of them answers: a pure plan.

planned = plan(settings, bases, champions, cores=2)
planned.engines["engine-smollm2-135m-helpdesk"].path
planned.tiers["helpdesk"][1].label                     # smollm2-135m:helpdesk@3
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from factory.catalog.objects import Object
from factory.config import ConfigError, Endpoint, Model, ProviderSource, Settings
from serve_apps.engine import EngineSpec

_CHAMPION = re.compile(r"models:/(?P<name>[\w.-]+)@champion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """A promoted adapter, folded into its base and ready to serve."""

    version: int
    """Version in the registry."""
    merged: Object
    """Merged weights in the object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPlan:
    """Who answers on one tier of one endpoint."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """Everything `serve_apps.up` deploys."""

    engines: Mapping[str, EngineSpec]
    tiers: Mapping[str, Mapping[int, TierPlan]]
    notes: tuple[str, ...]
    """What a person should know, for example that an endpoint answers with its base."""


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


def adapters_in_use(settings: Settings) -> dict[tuple[str, str], str]:
    """Registered name by (model, adapter) for every adapter that some endpoint wears."""
    found = {}
    for endpoint in settings.endpoints.values():
        for name, model in _open_models(settings, endpoint):
            if endpoint.adapter and endpoint.adapter in model.adapters:
                uri = model.adapters[endpoint.adapter]
                found[name, endpoint.adapter] = registered_name(uri)
    return found


def plan(
    settings: Settings,
    bases: Mapping[str, Object],
    champions: Mapping[tuple[str, str], Champion | None],
) -> ServingPlan:
    """The deployments and the ladder of every endpoint.

    `bases` are the pulled weights by model; `champions` the promoted adapter by (model, adapter),
    None where none is promoted yet, in which case the base answers and a note says so.
    """
    engines: dict[str, EngineSpec] = {}
    tiers: dict[str, dict[int, TierPlan]] = {}
    notes: list[str] = []
    for endpoint_name, endpoint in settings.endpoints.items():
        ladder = tiers.setdefault(endpoint_name, {})
        for name, model in settings.models.items():
            if model.tier not in endpoint.tiers:
                continue
            if isinstance(model.source, ProviderSource):
                ladder[model.tier] = _provider(name, model, model.source)
                continue
            adapter = endpoint.adapter if endpoint.adapter in model.adapters else None
            champion = champions.get((name, adapter)) if adapter else None
            if adapter and champion is None:
                notes.append(
                    f"endpoint {endpoint_name}: no version of '{adapter}' is promoted yet, "
                    f"so the base {name} answers"
                )
            spec, tier = _engine(name, model, bases[name], adapter, champion)
            engines[tier.engine or ""] = spec
            ladder[model.tier] = tier
    return ServingPlan(engines=engines, tiers=tiers, notes=tuple(notes))


def _open_models(settings: Settings, endpoint: Endpoint) -> list[tuple[str, Model]]:
    return [
        (name, model)
        for name, model in settings.models.items()
        if model.tier in endpoint.tiers and not isinstance(model.source, ProviderSource)
    ]


def _provider(name: str, model: Model, source: ProviderSource) -> TierPlan:
    return TierPlan(
        model=name, tier=model.tier, version=source.model, label=name, engine=None, path=None
    )


def _engine(
    name: str, model: Model, base: Object, adapter: str | None, champion: Champion | None
) -> tuple[EngineSpec, TierPlan]:
    weights = champion.merged if champion else base
    label = f"{name}:{adapter}@{champion.version}" if champion else name
    # The deployment keeps its name from version to version, so that Serve rolls it over.
    deployment = f"engine-{name}-{adapter}" if adapter else f"engine-{name}"
    spec = EngineSpec(
        model_id=label,
        path=str(weights.path),
        max_model_len=model.max_model_len,
        num_gpus=model.gpus,
        engine_kwargs=dict(model.engine_kwargs),
    )
    tier = TierPlan(
        model=name,
        tier=model.tier,
        version=weights.hash[:16],
        label=label,
        engine=deployment,
        path=str(weights.path),
        adapter=adapter if champion else None,
    )
    return spec, tier

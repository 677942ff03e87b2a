"""The gateway as a Ray Serve app that listens for HTTP itself; see `serve_apps.listener`.

    app = gateway_app(planned, handles, home=settings.home, config=path, port=8000, replicas=1)
    serve.run(app, name="factory", route_prefix=None)

The replica reads `factory.yaml` itself, so that secrets come from its own environment and never
travel through Serve's state.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from factory.config import Settings, load
from factory.embedding.static import StaticEmbedder
from factory.gateway.app import build_app
from factory.gateway.clock import Clock
from factory.gateway.meaning import Meaning
from factory.gateway.pipeline import Gateway
from factory.gateway.provider import serve_provider
from factory.gateway.served import Served
from factory.ledger.budgets import configured
from factory.ledger.journal import Journal
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.till import Till
from factory.ledger.writer import LedgerWriter
from serve_apps.alerting import Alerting
from serve_apps.embedder import RayEmbedder
from serve_apps.engine_spec import MESSAGES
from serve_apps.listener import Listener
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.prompts import PromptCounter
from serve_apps.ray_engine import RayEngine
from serve_apps.reports import Reports
from serve_apps.rollover import GATEWAY_CPUS
from serve_apps.serving import ServingPlan, TierPlan
from serve_apps.watch import Watch

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    **MESSAGES,
}
"""Of a replica: its small matrix products are slower in several threads, and calls of engines need
not cross a second event loop."""

SHUTDOWN_S = 30.0
"""Seconds that requests in progress get when a replica is replaced."""


class GatewayApp:
    """One gateway replica: ledger, cache and the ladder of every endpoint."""

    async def __init__(
        self,
        home: str,
        config: str | None,
        port: int,
        planned: ServingPlan,
        handles: Mapping[str, DeploymentHandle],
    ) -> None:
        """`handles` of engines and embedders, by the name of their deployment."""
        keep_replica_on_loopback()
        settings = load(Path(config) if config else None, os.environ | {"FACTORY_HOME": home})
        self._ledger = open_ledger(settings.database_url)
        self._alerting = Alerting(settings.alerts)
        self._books = _books(settings, self._ledger, self._alerting)
        counters = {one.path: PromptCounter(one.path) for one in _plans(planned) if _counted(one)}

        self._watch = Watch(
            {
                name: (spec, handles[name])
                for name, spec in [*planned.engines.items(), *planned.embedders.items()]
                if not spec.target.min_replicas
            }
        )

        def served(one: TierPlan) -> Served:
            return _served(settings, one, handles, counters, self._watch)

        clock = Clock()
        embedder = planned.static and StaticEmbedder.load(Path(planned.static))
        self._gateway = Gateway(
            settings,
            self._ledger,
            self._books,
            {
                endpoint: {tier: served(one) for tier, one in ladder.items()}
                for endpoint, ladder in planned.tiers.items()
            },
            pinned={name: served(one) for name, one in planned.pinned.items()},
            meaning=Meaning(settings, self._ledger, embedder, clock) if embedder else None,
            clock=clock,
            engines=Reports(handles, self._watch),
        )
        await self._books.start()
        self._watch.start()
        self._tending = asyncio.create_task(self._gateway.tend())
        # What is loaded stays: collecting garbage need not look at it again.
        gc.collect()
        gc.freeze()
        self._listener = Listener(build_app(self._gateway), settings.gateway.host, port)
        await self._listener.start()

    async def check_health(self) -> None:
        """Raise when it no longer listens; Serve then replaces the replica."""
        if not self._listener.alive:
            raise RuntimeError("the gateway does not listen any more")

    async def __del__(self) -> None:
        await self._listener.stop(SHUTDOWN_S - 5)
        await self._watch.stop()
        self._tending.cancel()
        await self._gateway.drain()
        await self._books.close()
        await self._alerting.drain()
        self._ledger.close()


def _books(settings: Settings, ledger: Ledger, alerting: Alerting) -> LedgerWriter | Till:
    writer = LedgerWriter(ledger, budgets=configured(settings), on_alert=alerting.tell)
    if not settings.gateway.journal:
        return writer
    return Till(writer, Journal(settings.home / "run" / "journals", writer.holder))


def _plans(planned: ServingPlan) -> list[TierPlan]:
    ladders = [one for ladder in planned.tiers.values() for one in ladder.values()]
    return [*ladders, *planned.pinned.values()]


def _counted(one: TierPlan) -> bool:
    """Whether the gateway itself can tell the length of a prompt for this model."""
    return one.engine is not None and one.engine.startswith("engine-")


def _served(
    settings: Settings,
    one: TierPlan,
    handles: Mapping[str, DeploymentHandle],
    counters: Mapping[str | None, PromptCounter],
    watch: Watch,
) -> Served:
    model = settings.models[one.model]
    if one.engine is None:
        return serve_provider(one.model, model)
    handle = handles[one.engine]
    counted = _counted(one)
    return Served(
        model=one.model,
        tier=one.tier,
        version=one.version,
        label=one.label,
        price=model.price,
        engine=RayEngine(handle, one.lora) if counted else None,
        embedder=None if counted else RayEmbedder(handle),
        max_model_len=model.max_model_len,
        adapter=one.adapter,
        sleeper=watch.of(one.engine),
        prioritizes=counted,
        count_tokens=counters[one.path].count if counted else None,
        most_tokens=counters[one.path].most if counted else None,
        tools=one.tools,
    )


def gateway_app(
    planned: ServingPlan,
    handles: Mapping[str, DeploymentHandle],
    *,
    home: Path,
    config: Path | None,
    port: int,
    replicas: int,
) -> serve.Application:
    """The gateway with its engines' `handles`, ready for `serve.run`; it will listen on `port`.

    A new one is up before the old one goes.
    """
    options: dict[str, Any] = {
        "num_cpus": GATEWAY_CPUS,
        "runtime_env": {"env_vars": ENVIRONMENT},
    }
    if planned.nodes:
        options["label_selector"] = dict(planned.nodes)
    return (
        serve.deployment(GatewayApp)
        .options(  # type: ignore[no-any-return]
            name="gateway",
            num_replicas=replicas,
            max_ongoing_requests=256,
            ray_actor_options=options,
            graceful_shutdown_timeout_s=SHUTDOWN_S,
            max_surge_percent=100,
        )
        .bind(str(home), str(config) if config else None, port, planned, dict(handles))
    )

"""The Serve applications of a line: one for each version of an engine, and the gateway's.

    applications = Applications(planned, cores=2, capacity={"CPU": 2}, gateways=1, say=print)
    applications.roll_over(lambda handles: gateway_app(planned, handles, ...))

`rollover.rollover` says in which order they replace what runs; this carries it out. A version that
does not start is taken away again, and what was served stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray import serve
from ray._private.state import available_resources_per_node, state
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeInstanceDetails

from serve_apps.embedder import EmbedderSpec, embedder_app, embedder_version
from serve_apps.engine import engine_app, engine_version
from serve_apps.engine_spec import EngineSpec, budgets, engine_kwargs
from serve_apps.rollover import GATEWAY_CPUS, Part, Room, rollover
from serve_apps.serving import ServingPlan

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

APP = "factory"
"""The gateway's application; those of engines begin with it."""

PROCESS_BYTES = 1.5e9
"""Memory of an engine's process beside weights and KV cache: vLLM, torch, activations."""

ENCODER_BYTES = 0.7e9
"""The same of an embedder's process."""

POLL_S = 0.2
"""Seconds between two looks at what starts or stops."""


@dataclass(frozen=True, slots=True)
class Running:
    """An application of this line that is there now."""

    deployment: str
    replicas: int
    """Those that run."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folders by name, of an engine that holds adapters."""


class Applications:
    """The wanted applications of one plan, and the way to them. Needs Ray and Serve to run."""

    def __init__(
        self,
        planned: ServingPlan,
        *,
        cores: int,
        capacity: Mapping[str, float],
        gateways: int,
        say: Callable[[str], None],
    ) -> None:
        """`cores` are those of the largest node, `capacity` is what the whole cluster has, by
        resource; `say` hears of progress."""
        self._cores = cores
        self._gateway = Part(
            name=APP,
            deployment="gateway",
            replicas=gateways,
            cpus=GATEWAY_CPUS,
            nodes=planned.nodes,
        )
        # While the gateway is replaced, old and new are there.
        fixed = 2 * gateways * GATEWAY_CPUS
        fixed += sum(
            spec.num_cpus * spec.target.max_replicas for spec in planned.embedders.values()
        )
        self._budgets = budgets(planned.engines.values(), _most(capacity), fixed)
        self._say = say
        self._specs: dict[str, EngineSpec | EmbedderSpec] = {}
        self._parts: dict[str, Part] = {}
        for name, spec in [*planned.engines.items(), *planned.embedders.items()]:
            part = _part(spec, name, cores)
            self._specs[part.name], self._parts[part.name] = spec, part

    def roll_over(self, gateway: Callable[[Mapping[str, DeploymentHandle]], Any]) -> None:
        """Replace what runs by what is wanted; returns when all of it runs.

        `gateway` makes the gateway's application from the handles, by deployment.
        Raises `RuntimeError` when something does not start.
        """
        found = _running()
        self._remove(name for name, one in found.items() if one is None)
        running = {name: one for name, one in found.items() if one is not None}
        first = running.pop(APP, None) is None
        replicas = {one.deployment: one.replicas for one in running.values()}
        wanted = [
            replace(part, replicas=max(part.replicas, self._before(part, replicas)))
            for part in self._parts.values()
        ]
        order = rollover(wanted, running, () if first else _rooms(), self._gateway)
        starts = {**order.beside, **order.after}
        apps = {
            part.name: self._app(part, running.get(part.name), starts.get(part.name))
            for part in wanted
        }
        for reason in () if first else order.reasons:
            self._say(reason)
        if order.beside:
            self._say("starting " + ", ".join(self._names(order.beside)) + " beside what runs")
        ready = {name: apps[name] for name in (*order.kept, *order.beside)}
        try:
            self._run(ready)
            self._await(ready)
        except RuntimeError:
            self._remove(order.beside)
            raise
        handles = {
            part.deployment: serve.get_deployment_handle(
                part.deployment, part.name, _check_exists=False
            )
            for part in wanted
        }
        rest = {name: apps[name] for name in order.after}
        self._run({APP: gateway(handles)} | rest)
        self._await([APP])
        if order.stale:
            self._await_only_new_gateways()
            self._remove(order.stale)
        self._await(rest)
        # Adapters that only the old gateway asked for.
        self._run(
            {
                name: self._app(self._parts[name], None, None)
                for name in order.kept
                if set(running[name].adapters) - set(self._adapters(name))
            }
        )

    def _before(self, part: Part, replicas: Mapping[str, int]) -> int:
        """Replicas that the version before has, as far as the new one may have them."""
        most = self._specs[part.name].target.max_replicas
        return min(replicas.get(part.deployment, 0), most)

    def _adapters(self, name: str) -> Mapping[str, str]:
        spec = self._specs[name]
        return spec.adapters if isinstance(spec, EngineSpec) else {}

    def _names(self, applications: Iterable[str]) -> list[str]:
        return [self._parts[name].deployment for name in applications]

    def _app(self, part: Part, running: Running | None, initial: int | None) -> serve.Application:
        """The application; one that is `running` keeps its replicas and its adapters for now."""
        spec = self._specs[part.name]
        if isinstance(spec, EmbedderSpec):
            return embedder_app(spec, name=part.deployment, cores=self._cores, initial=initial)
        if running is not None:
            spec = replace(spec, adapters={**running.adapters, **spec.adapters})
        return engine_app(
            spec,
            name=part.deployment,
            cores=self._cores,
            initial=initial,
            budgets=self._budgets,
        )

    def _run(self, apps: Mapping[str, serve.Application]) -> None:
        if apps:
            serve.run_many(
                [serve.RunTarget(app, name, route_prefix=None) for name, app in apps.items()],
                wait_for_applications_running=False,
            )

    def _await(self, names: Iterable[str]) -> None:
        """Return when all of these applications run. Raises `RuntimeError` when one cannot."""
        waiting, told = set(names), set[str]()
        while waiting:
            for name, application in serve.status().applications.items():
                if name not in waiting:
                    continue
                if application.status == ApplicationStatus.RUNNING:
                    waiting.discard(name)
                elif application.status == ApplicationStatus.DEPLOY_FAILED:
                    lines = [one.message for one in application.deployments.values()]
                    why = "; ".join(filter(None, lines)) or application.message
                    raise RuntimeError(f"{_deployment(name)} does not start: {_last(why)}")
                else:
                    for one in application.deployments.values():
                        if one.message.strip() and one.message not in told:
                            told.add(one.message)
                            self._say(f"{_deployment(name)}: {one.message.strip().splitlines()[0]}")
            if waiting:
                time.sleep(POLL_S)

    def _await_only_new_gateways(self) -> None:
        """Return when the old gateway has finished its requests; Serve stops it in any case."""
        while True:
            (deployment,) = serve.status().applications[APP].deployments.values()
            if set(deployment.replica_states) <= {"RUNNING"}:
                return
            time.sleep(POLL_S)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            serve.delete(name)


def _part(spec: EngineSpec | EmbedderSpec, name: str, cores: int) -> Part:
    """What the application of a deployment is called, and what it takes."""
    if isinstance(spec, EmbedderSpec):
        return Part(
            name=_application(name, embedder_version(spec, cores)),
            deployment=name,
            floor=spec.target.min_replicas,
            replicas=max(1, spec.target.min_replicas),
            cpus=spec.num_cpus,
            nodes=spec.nodes,
            memory=ENCODER_BYTES + _size(spec.path),
        )
    cache = float(engine_kwargs(spec).get("kv_cache_memory_bytes", 0))
    return Part(
        name=_application(name, engine_version(spec, cores)),
        deployment=name,
        floor=spec.target.min_replicas,
        replicas=max(1, spec.target.min_replicas),
        cpus=spec.takes["CPU"],
        gpus=spec.takes["GPU"],
        nodes=spec.nodes,
        memory=PROCESS_BYTES + _size(spec.path) + cache,
    )


def _application(deployment: str, version: str) -> str:
    return f"{APP}:{deployment}:{version[:8]}"


def _deployment(application: str) -> str:
    """`engine-smollm2-135m` of `factory:engine-smollm2-135m:5b0c12ab`."""
    return application.split(":")[1] if ":" in application else "the gateway"


def _last(message: str) -> str:
    """The line of a traceback that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def _running() -> dict[str, Running | None]:
    """This line's applications by name; None for one that has failed or is on its way out."""
    # `serve.status()` does not have the adapters.
    client = _get_global_client()
    found = ServeInstanceDetails(**client.get_serve_details())
    running: dict[str, Running | None] = {}
    for name, one in found.applications.items():
        if name != APP and not name.startswith(f"{APP}:"):
            continue
        gone = one.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING)
        if not one.deployments or (gone and name != APP):
            running[name] = None
            continue
        (deployment,) = one.deployments.values()
        config = deployment.deployment_config.user_config or {}
        running[name] = Running(
            deployment.name,
            sum(replica.state == "RUNNING" for replica in deployment.replicas),
            config.get("adapters", {}),
        )
    return running


def _most(capacity: Mapping[str, float]) -> dict[str, float]:
    """What the cluster can grow to, where its autoscaler says so; else what it has."""
    limits = state.get_max_resources_from_cluster_config() or {}
    return {
        resource: max(capacity.get(resource, 0.0), float(limits.get(resource, 0.0)))
        for resource in ("CPU", "GPU")
    }


def _rooms() -> list[Room]:
    """What is free on each node that is alive; memory is known of this one."""
    here = ray.get_runtime_context().get_node_id()
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    return [
        Room(
            cpus=free.get("CPU", 0.0),
            gpus=free.get("GPU", 0.0),
            labels=labels.get(node, {}),
            memory=psutil.virtual_memory().available if node == here else float("inf"),
        )
        for node, free in available_resources_per_node().items()
    ]

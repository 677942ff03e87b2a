"""A tier's engine: one vLLM replica through `ray.serve.llm`.

    app = engine_app(EngineSpec(model_id="smollm2-135m:helpdesk@1", path="/…/model"), ...)
    handle = serve.run(app, name="engine", route_prefix=None)      # for a `RayEngine`

Adapters are the deployment's `user_config`: deploying again with others loads and unloads them in
the replicas that run, as long as nothing else has changed.

`LLMServer` is built inside the replica rather than subclassed at module level, because importing
it imports vLLM: 12-20 s that neither the deploying process nor the gateway needs to spend.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from ray import serve

from factory.gateway.engine import Route
from factory.scaling import Target
from serve_apps import lean
from serve_apps.engine_spec import EngineSpec, actor_options, engine_kwargs, replicas
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.reports import Report
from serve_apps.versions import deployment_version

if TYPE_CHECKING:
    from serve_apps.vllm_server import FactoryLLMServer

WARM_UP: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Are you ready?"}],
    "max_tokens": 2,
    "logprobs": True,
}
"""The first request of a replica, which pays for everything that vLLM initialises lazily."""


MOST_NAPS = 12
"""Times that a standby falls asleep before another takes over: vLLM's registries keep about 40 MB
of each model that was unloaded."""


class TierEngine:
    """The replica: `ray.serve.llm`'s server in plain dictionaries of OpenAI's shape.

    A standby has vLLM imported and no model: it loads the model when a request comes, and gives the
    memory back when none has come for `idle_after_s`.
    """

    async def __init__(self, spec: EngineSpec) -> None:
        """Start vLLM and answer one request, so that no user pays for lazy initialisation.

        A standby imports vLLM and no more. Raises `FileNotFoundError` before that where there is no
        model, so that a deployment that cannot be fails soon.
        """
        keep_replica_on_loopback()
        if not (Path(spec.path) / "config.json").is_file():
            raise FileNotFoundError(f"the folder {spec.path} has no model: no config.json")
        _quiet_access_log()
        self._spec = spec
        self._on_cpu = spec.num_gpus == 0
        self._adapters: dict[str, str] = {}
        self._server: FactoryLLMServer | None = None
        self._starting = asyncio.Lock()
        self._ongoing = self._naps = 0
        self._used = time.monotonic()
        self._times: dict[str, float] = {}
        self._arguments = engine_kwargs(spec)
        begun = time.perf_counter()
        lean.prefetch(Path(spec.path))
        eager = bool(self._arguments.get("enforce_eager"))
        lean.import_engine(on_cpu=self._on_cpu, eager=eager)
        from serve_apps.engine_stats import EngineStats

        self._times["engine_import_s"] = time.perf_counter() - begun
        self._stats = EngineStats(int(self._arguments["max_num_seqs"]))
        if spec.standby:
            self._dozing = asyncio.create_task(self._doze())
        else:
            await self._awake()

    async def _awake(self) -> FactoryLLMServer:
        """The server, started if it sleeps."""
        async with self._starting:
            if self._server is None:
                self._server = await self._started()
        return self._server

    async def _started(self) -> FactoryLLMServer:
        from ray.serve.llm import LLMConfig

        from serve_apps.vllm_server import build_server

        begun = time.perf_counter()
        server = build_server(
            LLMConfig(
                model_loading_config={
                    "model_id": self._spec.model_id,
                    "model_source": self._spec.path,
                },
                accelerator_config={"kind": "cpu" if self._on_cpu else "gpu"},
                engine_kwargs=self._arguments,
                experimental_configs={"stream_batching_interval_ms": 0},
                log_engine_metrics=False,
            ),
            self._stats,
            on_cpu=self._on_cpu,
        )
        await server.start()
        for name, path in self._adapters.items():
            await server.load_adapter(name, path)
        loaded = time.perf_counter()
        async for _ in await server.chat(self._request(WARM_UP, "chat")):
            pass
        self._times |= {
            "weights_s": loaded - begun,
            "warm_up_s": time.perf_counter() - loaded,
            "process_s": time.time() - psutil.Process().create_time(),
        }
        return server

    @asynccontextmanager
    async def _use(self) -> AsyncGenerator[FactoryLLMServer, None]:
        """The server for one request, which keeps it awake."""
        self._ongoing += 1
        try:
            yield await self._awake()
        finally:
            self._ongoing -= 1
            self._used = time.monotonic()

    async def _doze(self) -> None:
        """Fall asleep whenever nobody has asked for `idle_after_s`."""
        while True:
            idle = 0.0 if self._ongoing else time.monotonic() - self._used
            left = self._spec.target.idle_after_s - idle
            if left > 0:
                await asyncio.sleep(min(left, self._spec.target.idle_after_s))
                continue
            async with self._starting:
                if self._server is not None and not self._ongoing:
                    server, self._server = self._server, None
                    self._stats.stopped()
                    server.stop()
                    del server
                    lean.release()
                    self._naps += 1
            self._used = time.monotonic()

    async def wake(self) -> bool:
        """True once the engine has its model; a standby loads it now."""
        await self._awake()
        self._used = time.monotonic()
        return True

    async def state(self) -> dict[str, float]:
        """`awake` is 1 with a model and 0 without; `rss_bytes` and `cpu_s` of the process; and
        where its last start went: `engine_import_s`, `weights_s`, `warm_up_s`, and `process_s`, its
        age when it was done."""
        process = psutil.Process()
        return self._times | {
            "awake": float(self._server is not None),
            "rss_bytes": float(process.memory_info().rss),
            "cpu_s": sum(process.cpu_times()[:2]),
        }

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the adapters in `user_config` that are new, and unload those that are gone.

        Serve calls this after the start and whenever they change; requests go on meanwhile.
        """
        wanted: dict[str, str] = user_config["adapters"]
        for name in self._adapters.keys() - wanted.keys():
            await self.unload_adapter(name)
        for name, path in wanted.items():
            if self._adapters.get(name) != path:
                await self.load_adapter(name, path)

    async def load_adapter(self, name: str, path: str) -> None:
        """Make the adapter in the folder `path` available as `name`, replacing a former one.

        Raises `RuntimeError` with vLLM's reason when it cannot be loaded.
        """
        if name in self._adapters:
            await self.unload_adapter(name)
        if self._server is not None:
            await self._server.load_adapter(name, path)
        self._adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter and free its memory. Raises `RuntimeError` when it is not loaded."""
        self._adapters.pop(name, None)
        if self._server is not None:
            await self._server.unload_adapter(name)

    async def answer(self, body: dict[str, Any], route: Route = "chat") -> dict[str, Any]:
        """A completion of the route's kind, or `{"error": {"message", "code"}}`."""
        try:
            request = self._request(body | {"stream": False}, route)
        except Exception as error:
            return _refusal(error)
        async with self._use() as server:
            async for answer in await _ask(server, request, route):
                return answer.model_dump(exclude_none=True)  # type: ignore[no-any-return]
        return {"error": {"message": "the engine returned nothing", "code": 500}}

    async def whole(
        self, body: dict[str, Any], route: Route = "chat"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """`answer`, as the only item of a stream.

        Over gRPC Serve learns that a stream was accepted at once, but that a plain call was only
        with its answer: it would ask again, and again, for what broke a replica.
        """
        yield await self.answer(body, route)

    async def stream(
        self, body: dict[str, Any], route: Route = "chat"
    ) -> AsyncGenerator[str, None]:
        """Server-sent-event lines (`data: {…}`) of the route's chunks."""
        options = {"include_usage": True}
        try:
            request = self._request(body | {"stream": True, "stream_options": options}, route)
        except Exception as error:
            yield "data: " + json.dumps(_refusal(error))
            return
        async with self._use() as server:
            async for part in await _ask(server, request, route):
                for event in part if isinstance(part, list) else [part]:
                    if isinstance(event, str):
                        yield event
                    else:
                        yield "data: " + json.dumps(event.model_dump(exclude_none=True))

    async def ping(self) -> bool:
        """True: a replica that is constructed can answer, at once or when it is woken."""
        return True

    async def report(self) -> Report:
        """What the gateway shows Prometheus."""
        return Report(
            replica=serve.get_replica_context().replica_id.unique_id,
            signals=self._stats.signals().stats(),
            metrics=self._stats.metrics.text(),
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve collects for the autoscaling policy."""
        return self._stats.signals().stats()

    async def check_health(self) -> None:
        """Raise when the engine is dead, or a standby has slept often; Serve then replaces it.

        A standby that is needed goes on: Serve asks three times, ten seconds apart, before it acts.
        """
        if self._server is not None:
            await self._server.check_health()
        elif self._naps >= MOST_NAPS and not self._ongoing and not self._starting.locked():
            raise RuntimeError(f"this standby has slept {self._naps} times; a new one takes over")

    def _request(self, body: dict[str, Any], route: Route) -> Any:
        """vLLM's own request, for the adapter that `body` names or else the loaded model.

        Raises what vLLM raises for a request that it does not take.
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

        body = body | {"model": body.get("model") or self._spec.model_id}
        if self._arguments["scheduling_policy"] != "priority":
            body.pop("priority", None)
        if route == "completions":
            return CompletionRequest(**body)
        body["messages"] = [_known_role(message) for message in body["messages"]]
        return ChatCompletionRequest(**body)


async def _ask(server: FactoryLLMServer, request: Any, route: Route) -> AsyncGenerator[Any, None]:
    if route == "completions":
        return await server.completions(request)  # type: ignore[no-any-return]
    return await server.chat(request)  # type: ignore[no-any-return]


def _known_role(message: dict[str, Any]) -> dict[str, Any]:
    """`developer` is OpenAI's newer name of `system`, which chat templates do not know."""
    return message | {"role": "system"} if message["role"] == "developer" else message


def _refusal(error: Exception) -> dict[str, Any]:
    """The request is at fault: what is wrong, without the input that pydantic repeats."""
    from pydantic import ValidationError

    message = str(error)
    if isinstance(error, ValidationError):
        message = "; ".join(problem["msg"] for problem in error.errors())
    return {"error": {"message": message[:300], "code": 400}}


def _quiet_access_log() -> None:
    """Serve logs every call at INFO; the gateway's ledger is the record of requests."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def engine_version(spec: EngineSpec, cores: int) -> str:
    """Changes when its replicas must be started anew: not with adapters, nor with bounds."""
    return deployment_version(asdict(_bare(spec)), cores)


def _bare(spec: EngineSpec) -> EngineSpec:
    """What the replica is started with; the rest may change while it runs."""
    idle_after_s = spec.target.idle_after_s if spec.standby else 0.0
    target = Target(idle_after_s=idle_after_s)
    return replace(spec, adapters={}, target=target, class_="batch", priority=1)


def engine_app(
    spec: EngineSpec,
    *,
    name: str,
    cores: int,
    initial: int | None = 1,
    budgets: Mapping[str, float] | None = None,
) -> serve.Application:
    """A bindable deployment of `TierEngine`, with `initial` replicas; None leaves as many as run.

    With `budgets` its replicas are bounded beside those of the others, see `engine_spec.budgets`.

    On GPUs a placement group keeps its workers close; one CPU process needs none, and starts sooner
    without.
    """
    together: dict[str, Any] = {}
    if spec.num_gpus:
        bundle = {"CPU": spec.num_cpus, "GPU": 1}
        together = {
            "placement_group_bundles": [bundle] * spec.num_gpus,
            "placement_group_strategy": "PACK",
        }
        if spec.nodes:
            together["placement_group_bundle_label_selector"] = [dict(spec.nodes)]
    return (
        serve.deployment(TierEngine)
        .options(  # type: ignore[no-any-return]
            name=name,
            max_ongoing_requests=spec.max_ongoing_requests,
            ray_actor_options=actor_options(spec, cores),
            user_config={"adapters": dict(spec.adapters)},
            graceful_shutdown_timeout_s=10,
            version=engine_version(spec, cores),
            _internal=True,
            **together,
            **replicas(spec, initial, budgets),
        )
        .bind(_bare(spec))
    )

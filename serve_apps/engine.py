"""A tier's engine: one vLLM replica through `ray.serve.llm`, and the gateway's handle to it.

    app = engine_app(EngineSpec(model_id="smollm2-135m:helpdesk@1", path="/…/model"), ...)
    engine = RayEngine(handle)             # implements factory.gateway.engine.Engine
    RayEngine(handle, "smollm2-135m:helpdesk@1")   # asks a multi-adapter engine for one of them

Adapters are the deployment's `user_config`: deploying again with others loads and unloads them in
the replicas that run, as long as nothing else has changed.

`LLMServer` is built inside the replica rather than subclassed at module level, because importing
it imports vLLM: 12-20 s that neither the deploying process nor the gateway needs to spend.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from ray import serve

from factory.gateway.engine import EngineError, Route
from factory.scaling import Target
from serve_apps import lean
from serve_apps.autoscaling import autoscaling
from serve_apps.loopback import keep_replica_on_loopback

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_apps.vllm_server import FactoryLLMServer

KV_CACHE_BYTES = 512 * 2**20
"""KV cache of a CPU replica: 23,000 tokens of SmolLM2-135M, 700 for each of 32 requests. Every page
of it is touched at the start, 0.7 s for this much; `engine_kwargs` can ask for more."""

MAX_LORAS = 4
"""Different adapters in one batch of a multi-adapter engine."""

MAX_CPU_LORAS = 16
"""Adapters that such an engine keeps in memory; the others are read again when asked for."""

ALWAYS_ONE = Target(min_replicas=1)
"""One replica that never sleeps."""

WARM_UP: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Are you ready?"}],
    "max_tokens": 2,
    "logprobs": True,
}
"""The first request of a replica, which pays for everything that vLLM initialises lazily."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What one engine deployment serves, as plain values that travel to the replica."""

    model_id: str
    """Name that the engine reports; unique within the application."""
    path: str
    """Folder with config, tokenizer and safetensors weights."""
    max_model_len: int = 1024
    """Context length in tokens."""
    max_ongoing_requests: int = 64
    """Requests a replica takes at once; the rest wait in the handle's queue."""
    num_cpus: float = 0.5
    """CPU share that Ray reserves; vLLM's threads are bounded by the environment below."""
    num_gpus: int = 0
    """GPUs of a replica (its tensor-parallel size); 0 runs on the CPU."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Label selector of the nodes that may hold it; empty lets any."""
    max_lora_rank: int = 0
    """Highest rank of adapters that can be loaded at run time; 0 loads none."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapter folder by the name under which a request asks for it."""
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    """Extra arguments for vLLM's `AsyncEngineArgs`; they win over the defaults here."""
    target: Target = ALWAYS_ONE
    """Bounds of its replicas and what they must hold; a floor of 0 lets the engine sleep."""
    standby: bool = False
    """Asleep, it keeps a process with vLLM imported."""


def engine_environment(spec: EngineSpec, cores: int) -> dict[str, str]:
    """Environment of the replica. On a CPU the model runs inside vLLM's engine process.

    `VLLM_ENABLE_V1_MULTIPROCESSING=0` lets the CPU platform accept the `uni` executor: one
    process less to start, and no hop between engine and worker for every token.
    """
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    if spec.num_gpus:
        return quiet | offline
    return (
        quiet
        | offline
        | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(cores),
            "MKL_NUM_THREADS": str(cores),
        }
    )


def engine_kwargs(spec: EngineSpec) -> dict[str, Any]:
    """Arguments for `AsyncEngineArgs`, by device."""
    chosen: dict[str, Any] = {
        "max_model_len": spec.max_model_len,
        "dtype": "bfloat16",
        "max_num_seqs": 32,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "scheduling_policy": "priority",
        "max_logprobs": 20,
    }
    if spec.num_gpus:
        chosen |= {"tensor_parallel_size": spec.num_gpus}
    else:
        chosen |= {"enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
    if spec.max_lora_rank:
        loras = int(spec.engine_kwargs.get("max_loras", MAX_LORAS))
        chosen |= {
            "enable_lora": True,
            "max_lora_rank": spec.max_lora_rank,
            "max_loras": loras,
            "max_cpu_loras": max(loras, MAX_CPU_LORAS),
        }
    if "tool_call_parser" in spec.engine_kwargs:
        chosen |= {"enable_auto_tool_choice": True}
    return chosen | spec.engine_kwargs


class TierEngine:
    """The replica: `ray.serve.llm`'s server in plain dictionaries of OpenAI's shape.

    A standby has vLLM imported and no model: it loads the model when a request comes, and gives the
    memory back when none has come for `idle_after_s`.
    """

    async def __init__(self, spec: EngineSpec) -> None:
        """Start vLLM and answer one request, so that no user pays for lazy initialisation.

        A standby imports vLLM and no more.
        """
        keep_replica_on_loopback()
        _quiet_access_log()
        self._spec = spec
        self._on_cpu = spec.num_gpus == 0
        self._adapters: dict[str, str] = {}
        self._server: FactoryLLMServer | None = None
        self._starting = asyncio.Lock()
        self._ongoing = 0
        self._used = time.monotonic()
        self._times: dict[str, float] = {}
        begun = time.perf_counter()
        lean.prefetch(Path(spec.path))
        lean.import_engine(on_cpu=self._on_cpu)
        from serve_apps.engine_stats import EngineStats

        self._times["engine_import_s"] = time.perf_counter() - begun
        self._arguments = engine_kwargs(spec)
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

    async def signals(self) -> dict[str, float]:
        """`ReplicaSignals.stats()` of this moment."""
        return self._stats.signals().stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve collects for the autoscaling policy."""
        return self._stats.signals().stats()

    async def check_health(self) -> None:
        """Raise when the engine is dead; Serve then replaces the replica."""
        if self._server is not None:
            await self._server.check_health()

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


def deployment_version(*facts: Any) -> str:
    """Changes when a replica must be started anew, and not otherwise.

    Without it Serve takes every deployment of a `serve.run` for a new one.
    """
    text = json.dumps([version("budget-ai-factory"), *facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def engine_app(spec: EngineSpec, *, name: str, cores: int) -> serve.Application:
    """A bindable deployment of `TierEngine`.

    On GPUs a placement group keeps its workers close; one CPU process needs none, and starts sooner
    without.
    """
    idle_after_s = spec.target.idle_after_s if spec.standby else 0.0
    bare = replace(spec, adapters={}, target=Target(idle_after_s=idle_after_s))
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
            version=deployment_version(asdict(bare), cores),
            _internal=True,
            **together,
            **replicas(spec),
        )
        .bind(bare)
    )


def actor_options(spec: EngineSpec, cores: int) -> dict[str, Any]:
    """Ray's options for a replica; a standby of the same options can become one."""
    return {
        "num_cpus": spec.num_cpus,
        "runtime_env": {"env_vars": engine_environment(spec, cores)},
        **({"label_selector": dict(spec.nodes)} if spec.nodes and not spec.num_gpus else {}),
    }


def replicas(spec: EngineSpec) -> dict[str, Any]:
    """Serve's options for how many replicas there are.

    What is deployed is started once even if it may sleep, so that weights that do not load fail the
    deployment.
    """
    if spec.standby or spec.target.min_replicas == spec.target.max_replicas == 1:
        return {"num_replicas": 1}
    initial = max(1, spec.target.min_replicas)
    return {"autoscaling_config": autoscaling(spec.target, initial=initial)}


class RayEngine:
    """The gateway's side of a `TierEngine`: the `Engine` protocol over a Serve handle."""

    def __init__(self, handle: DeploymentHandle, adapter: str | None = None) -> None:
        """`handle` is the deployment handle that Serve passes to the gateway.

        `adapter` is the one to ask for, by its name in the engine's spec; None asks the model that
        the engine has loaded.
        """
        self._named = {"model": adapter} if adapter else {}
        self._answer = handle.options(method_name="answer")
        self._stream = handle.options(method_name="stream", stream=True)
        self._ping = handle.options(method_name="ping")

    async def answer(self, body: dict[str, Any], route: Route = "chat") -> dict[str, Any]:
        """One completion of the route's kind. Raises `EngineError`."""
        asked = self._answer.remote(body | self._named, route)
        finished = False
        try:
            with translated():
                answer: dict[str, Any] = await asked
            finished = True
        finally:
            if not finished:
                # Whoever gave up must not leave work behind, nor a place in the queue.
                asked.cancel()
        _raise_for(answer)
        return answer

    async def stream(
        self, body: dict[str, Any], route: Route = "chat"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The route's chunks, the last with usage. Raises `EngineError`."""
        events = self._stream.remote(body | self._named, route)
        finished = False
        try:
            with translated():
                async for event in events:
                    for line in event.splitlines():
                        data = line.removeprefix("data: ").strip()
                        if data and data != "[DONE]":
                            chunk = json.loads(data)
                            _raise_for(chunk)
                            yield chunk
            finished = True
        finally:
            if not finished:
                events.cancel()

    async def check(self) -> None:
        """Return when a replica takes requests. Raises `EngineError`."""
        with translated():
            await self._ping.remote()


@contextmanager
def translated() -> Iterator[None]:
    """Ray's failures as `EngineError`; a call cancelled with its client as a cancellation."""
    from ray.exceptions import RayError, TaskCancelledError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except TaskCancelledError as error:
        raise asyncio.CancelledError from error
    except (RayError, RayServeException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = f"the engine is not answering: {lines[-1][:300]}"
        raise EngineError(503, message, retryable=True) from error


def _raise_for(answer: dict[str, Any]) -> None:
    if error := answer.get("error"):
        status = int(error.get("code") or 500)
        message = str(error.get("message", "the engine refused the request"))
        raise EngineError(status, message, retryable=status >= 500)

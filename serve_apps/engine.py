"""A tier's engine: one vLLM replica through `ray.serve.llm`, and the gateway's handle to it.

    app = engine_app(EngineSpec(model_id="smollm2-135m:helpdesk@1", path="/…/model"))
    engine = RayEngine(handle)             # implements factory.gateway.engine.Engine

`LLMServer` is built inside the replica rather than subclassed at module level, because importing
it imports vLLM: 12-20 s that neither the deploying process nor the gateway needs to spend.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import serve

from factory.gateway.engine import EngineError
from serve_apps.loopback import keep_replica_on_loopback

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

KV_CACHE_GIB = "1"
"""KV cache of a CPU replica: 46,592 tokens of SmolLM2-135M, far more than 32 requests hold."""


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
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    """Extra arguments for vLLM's `AsyncEngineArgs`; they win over the defaults here."""


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
            "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(cores),
        }
    )


def engine_kwargs(spec: EngineSpec) -> dict[str, Any]:
    """Arguments for `AsyncEngineArgs`, by device."""
    chosen: dict[str, Any] = {
        "max_model_len": spec.max_model_len,
        "dtype": "bfloat16",
        "max_num_seqs": 32,
        "enable_prefix_caching": True,
        "max_logprobs": 20,
    }
    if spec.num_gpus:
        chosen |= {"tensor_parallel_size": spec.num_gpus}
    else:
        chosen |= {"enforce_eager": True}
    return chosen | spec.engine_kwargs


class TierEngine:
    """The replica: `ray.serve.llm`'s server in plain dictionaries of OpenAI's shape."""

    async def __init__(self, spec: EngineSpec) -> None:
        """Start vLLM and answer one request, so that no user pays for lazy initialisation."""
        from ray.serve.llm import LLMConfig

        from serve_apps.vllm_server import build_server

        keep_replica_on_loopback()
        on_cpu = spec.num_gpus == 0
        self._spec = spec
        self._server = build_server(
            LLMConfig(
                model_loading_config={"model_id": spec.model_id, "model_source": spec.path},
                accelerator_config={"kind": "cpu" if on_cpu else "gpu"},
                engine_kwargs=engine_kwargs(spec),
                experimental_configs={"stream_batching_interval_ms": 0},
                log_engine_metrics=False,
            ),
            on_cpu=on_cpu,
        )
        await self._server.start()
        _quiet_access_log()
        await self.chat(WARM_UP)

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """A `chat.completion` object, or `{"error": {"message", "code"}}`."""
        async for answer in await self._server.chat(self._request(body | {"stream": False})):
            return answer.model_dump(exclude_none=True)  # type: ignore[no-any-return]
        return {"error": {"message": "the engine returned nothing", "code": 500}}

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Server-sent-event lines (`data: {…}`) of `chat.completion.chunk` objects."""
        options = {"include_usage": True}
        request = self._request(body | {"stream": True, "stream_options": options})
        async for part in await self._server.chat(request):
            for event in part if isinstance(part, list) else [part]:
                if isinstance(event, str):
                    yield event
                else:
                    yield "data: " + json.dumps(event.model_dump(exclude_none=True))

    async def ping(self) -> bool:
        """True: a replica that is constructed has answered its first request."""
        return True

    async def check_health(self) -> None:
        """Raise when the engine is dead; Serve then replaces the replica."""
        await self._server.check_health()

    def _request(self, body: dict[str, Any]) -> Any:
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        return ChatCompletionRequest(**(body | {"model": self._spec.model_id}))


def _quiet_access_log() -> None:
    """Serve logs every call at INFO; the gateway's ledger is the record of requests."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def engine_app(spec: EngineSpec, *, name: str, cores: int) -> serve.Application:
    """A bindable deployment of `TierEngine`, in a placement group that keeps its workers close."""
    bundle = {"CPU": spec.num_cpus} | ({"GPU": 1} if spec.num_gpus else {})
    return (
        serve.deployment(TierEngine)
        .options(  # type: ignore[no-any-return]
            name=name,
            num_replicas=1,
            max_ongoing_requests=spec.max_ongoing_requests,
            ray_actor_options={
                "num_cpus": spec.num_cpus,
                "runtime_env": {"env_vars": engine_environment(spec, cores)},
            },
            placement_group_bundles=[bundle] * max(1, spec.num_gpus),
            placement_group_strategy="PACK",
            graceful_shutdown_timeout_s=10,
        )
        .bind(spec)
    )


class RayEngine:
    """The gateway's side of a `TierEngine`: the `Engine` protocol over a Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """`handle` is the deployment handle that Serve passes to the gateway."""
        self._chat = handle.options(method_name="chat")
        self._stream = handle.options(method_name="stream", stream=True)
        self._ping = handle.options(method_name="ping")

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """One `chat.completion`. Raises `EngineError`."""
        with _translated():
            answer: dict[str, Any] = await self._chat.remote(body)
        _raise_for(answer)
        return answer

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """`chat.completion.chunk` objects, the last with usage. Raises `EngineError`."""
        events = self._stream.remote(body)
        finished = False
        try:
            with _translated():
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
        with _translated():
            await self._ping.remote()


@contextmanager
def _translated() -> Iterator[None]:
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

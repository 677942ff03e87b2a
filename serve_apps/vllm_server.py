"""`ray.serve.llm`'s server with a shorter start. Importing this module imports vLLM.

What is cut: the telemetry actor, a process of its own that imports vLLM, and on a CPU the processes
of vLLM's core and of its model worker, two more of that kind and two hops for every token.
`docs/benchmarks.md` has the figures.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig
from ray.serve.llm import LLMConfig, LLMServer
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import StatLoggerBase

from serve_apps.core_thread import in_process
from serve_apps.engine_stats import EngineStats


class StatLogger(StatLoggerBase):
    """Hands vLLM's statistics on, once a step."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take a step's statistics."""
        self._stats.record(scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say: the replica knows how its start went."""


class FactoryVLLMEngine(VLLMEngine):
    """`ray.serve.llm`'s engine, reporting to `stats`. On a CPU it lives in this process.

    Ray's CPU backend fixes the executor to `mp`; vLLM itself accepts `uni` on a CPU as long as
    `VLLM_ENABLE_V1_MULTIPROCESSING` is 0 (see `serve_apps.engine_spec.engine_environment`).
    """

    def __init__(self, llm_config: LLMConfig, *, stats: EngineStats, on_cpu: bool) -> None:
        super().__init__(llm_config)
        self._stats = stats
        self._on_cpu = on_cpu

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if self._on_cpu and config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config

    def _start_async_llm_engine(
        self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
    ) -> AsyncLLM:
        vllm_engine_config.parallel_config.placement_group = placement_group
        executor = Executor.get_class(vllm_engine_config)
        build = in_process if executor.__name__ == "UniProcExecutor" else _apart
        return build(  # type: ignore[no-any-return]
            AsyncLLM,
            vllm_config=vllm_engine_config,
            executor_class=executor,
            log_stats=False,
            stat_loggers=[lambda config, index=0: StatLogger(self._stats)],
        )


def _apart(engine: type[AsyncLLM], **arguments: Any) -> AsyncLLM:
    """As vLLM does it: the core in a process of its own."""
    return engine(**arguments)


class FactoryLLMServer(LLMServer):
    """`LLMServer` that starts its engine and reports to nobody."""

    async def _start_engine(self) -> None:
        await self.engine.start()

    def stop(self) -> None:
        """End the engine; its memory comes back once nothing refers to this server."""
        self.engine._engine_client.shutdown()

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter from a local folder, through vLLM's own registry of models.

        `ray.serve.llm` loads adapters from cloud storage only. Raises `RuntimeError`.
        """
        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=path)
        done = await self._models.load_lora_adapter(request)
        if isinstance(done, ErrorResponse):
            raise RuntimeError(f"the adapter '{name}' cannot be loaded: {done.error.message}")

    async def unload_adapter(self, name: str) -> None:
        """Unload it again. Raises `RuntimeError` when there is no such adapter."""
        loaded = self._models.lora_requests.get(name)
        done = await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        if isinstance(done, ErrorResponse) or loaded is None:
            raise RuntimeError(f"the adapter '{name}' is not loaded")
        # The registry only forgets the name; the weights are the engine's.
        await self._models.engine_client.remove_lora(loaded.lora_int_id)

    @property
    def _models(self) -> OpenAIServingModels:
        return self.engine._oai_models


def build_server(config: LLMConfig, stats: EngineStats, *, on_cpu: bool) -> FactoryLLMServer:
    """An unstarted server; `await server.start()` brings the engine up."""
    # One process needs no placement group, and the weights are in the object store already: no
    # download task is needed.
    grouped = mock.patch.object(VLLMEngineConfig, "get_or_create_pg", return_value=None)
    with grouped if on_cpu else nullcontext():
        config.get_or_create_callback().ctx.run_init_node = False
    engine = partial(FactoryVLLMEngine, stats=stats, on_cpu=on_cpu)
    return FactoryLLMServer.sync_init(config, engine_cls=engine)

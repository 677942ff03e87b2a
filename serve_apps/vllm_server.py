"""`ray.serve.llm`'s server with a shorter start. Importing this module imports vLLM.

What is cut: the telemetry actor, a process of its own that imports vLLM, and on a CPU the separate
model worker, another such process and a hop for every token. `docs/benchmarks.md` has the figures.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig, LLMServer
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest


class InProcessVLLMEngine(VLLMEngine):
    """Runs the model inside vLLM's engine process when there is no accelerator to isolate.

    Ray's CPU backend fixes the executor to `mp`; vLLM itself accepts `uni` on a CPU as long as
    `VLLM_ENABLE_V1_MULTIPROCESSING` is 0 (see `serve_apps.engine.engine_environment`).
    """

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config


class FactoryLLMServer(LLMServer):
    """`LLMServer` that starts its engine and reports to nobody."""

    async def _start_engine(self) -> None:
        await self.engine.start()

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


def build_server(config: LLMConfig, *, on_cpu: bool) -> FactoryLLMServer:
    """An unstarted server; `await server.start()` brings the engine up."""
    # The weights are in the object store already: no download task is needed.
    config.get_or_create_callback().ctx.run_init_node = False
    return FactoryLLMServer.sync_init(config, engine_cls=InProcessVLLMEngine if on_cpu else None)

"""`ray.serve.llm`'s server with a shorter start. Importing this module imports vLLM.

What is cut: the telemetry actor, a process of its own that imports vLLM, and on a CPU the separate
model worker, another such process and a hop for every token. `docs/benchmarks.md` has the figures.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig, LLMServer


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


def build_server(config: LLMConfig, *, on_cpu: bool) -> FactoryLLMServer:
    """An unstarted server; `await server.start()` brings the engine up."""
    # The weights are in the object store already: no download task is needed.
    config.get_or_create_callback().ctx.run_init_node = False
    return FactoryLLMServer.sync_init(config, engine_cls=InProcessVLLMEngine if on_cpu else None)

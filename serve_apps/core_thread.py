"""vLLM's engine core in a thread of the replica: one process to start instead of two.

    engine = in_process(AsyncLLM, vllm_config=config, executor_class=executor, log_stats=True)

vLLM's asynchronous client always starts its core in a process of its own, which imports vLLM once
more: 7 s of CPU and 0.8 GB on this kind of machine, before the first weight is read. Where one
process serves one model on a CPU there is nothing to isolate. The core's own loop runs here as it
is; only the two sockets between core and client are replaced by queues.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.logger import init_logger
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState
from vllm.v1.engine.core_client import (
    AsyncMPClient,
    EngineCoreClient,
    _process_utility_output,
)
from vllm.v1.engine.exceptions import EngineDeadError

_log = init_logger(__name__)


class ThreadedCore(EngineCoreProc):
    """The core with its busy loop, but neither handshake nor sockets."""

    def __init__(
        self, vllm_config: Any, executor_class: Any, log_stats: bool, outputs: Any
    ) -> None:
        """`outputs.put_nowait((client, EngineCoreOutputs))` takes what a step gives."""
        self.input_queue = queue.Queue()
        self.output_queue = outputs
        self.engine_index = 0
        self.engines_running = False
        self.shutdown_state = EngineShutdownState.RUNNING
        self.tensor_ipc_receiver = None
        self.has_coordinator = False
        self.publish_dp_lb_stats = False
        self.last_counts = (0, 0)
        self.process_input_queue_block = True
        self.enable_fault_tolerance = False
        failed = (EngineCoreRequestType.EXECUTOR_FAILED, b"")
        EngineCore.__init__(
            self,
            vllm_config,
            executor_class,
            log_stats,
            lambda: self.input_queue.put_nowait(failed),
        )

    def receive(self, kind: EngineCoreRequestType, request: Any) -> None:
        """What the input socket's thread does with a message."""
        if kind == EngineCoreRequestType.ADD:
            try:
                request = self.preprocess_add_request(request)
            except Exception:
                self._handle_request_preproc_error(request)
                return
        elif kind == EngineCoreRequestType.ABORT:
            self.aborts_queue.put_nowait(request)
        self.input_queue.put_nowait((kind, request))

    def stop(self) -> None:
        """Ask the busy loop to end."""
        self.shutdown_state = EngineShutdownState.REQUESTED
        self.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))


class ThreadedClient(AsyncMPClient):
    """`AsyncMPClient` to a core in this process. Build it in the event loop's thread."""

    def __init__(self, vllm_config: Any, executor_class: Any, log_stats: bool, **ignored: Any):
        """Loads the model, then starts the loop. Addresses of other processes are `ignored`."""
        self.vllm_config = vllm_config
        self.client_count, self.client_index = 1, 0
        self.engine_ranks_managed = [0]
        self.core_engine = b"\x00\x00"
        self.core_engines = [self.core_engine]
        self.engines_running = False
        self.utility_results: dict[int, asyncio.Future[Any]] = {}
        self.outputs_queue = asyncio.Queue()
        self.resources = SimpleNamespace(engine_dead=False, output_queue_task=None)
        self._engine_status = {}
        self._kv_event_sources: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._threads = torch.get_num_threads()
        self.core = ThreadedCore(vllm_config, executor_class, log_stats, self)
        vllm_config.cache_config.effective_attention_block_size = (
            self.core.vllm_config.cache_config.effective_attention_block_size
        )
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._thread.start()

    def put_nowait(self, output: tuple[int, EngineCoreOutputs]) -> None:
        """Take one output from the core's thread."""
        self._loop.call_soon_threadsafe(self._arrived, output[1])

    def _arrived(self, outputs: EngineCoreOutputs) -> None:
        if outputs.utility_output:
            _process_utility_output(outputs.utility_output, self.utility_results)
        elif outputs.outputs or outputs.scheduler_stats:
            self.outputs_queue.put_nowait(outputs)

    def _run(self) -> None:
        # OpenMP's number of threads belongs to a thread, and PyTorch sets it at some first
        # operation: vLLM's attention fails when it changes between planning and doing. Asking for
        # the number is such an operation, so that it is fixed from here on.
        torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            self.core.run_busy_loop()
        except SystemExit:
            pass
        except Exception:
            _log.exception("the engine core failed")
            self._loop.call_soon_threadsafe(self._died)
        finally:
            self.core.shutdown()

    def _died(self) -> None:
        self.resources.engine_dead = True
        self.outputs_queue.put_nowait(EngineDeadError())
        for waiting in self.utility_results.values():
            if not waiting.done():
                waiting.set_exception(EngineDeadError())

    def _ensure_output_queue_task(self) -> None:
        pass

    def _send_input(
        self, request_type: EngineCoreRequestType, request: Any, engine: Any = None
    ) -> Awaitable[Any]:
        self.ensure_alive()
        self.core.receive(request_type, request)
        return asyncio.sleep(0)

    async def _call_utility_async(self, method: str, *args: Any, engine: Any) -> Any:
        self.ensure_alive()
        call = uuid.uuid1().int >> 64
        future = self._loop.create_future()
        self.utility_results[call] = future
        self.core.receive(EngineCoreRequestType.UTILITY, (self.client_index, call, method, args))
        return await future

    def shutdown(self, timeout: float | None = None) -> None:
        """End the loop and release the model; waits at most `timeout` seconds, 5 by default."""
        self.resources.engine_dead = True
        self.core.stop()
        self._thread.join(5.0 if timeout is None else timeout)


def in_process(engine: Any, **arguments: Any) -> Any:
    """`engine(**arguments)`, an `AsyncLLM`, with its core in a thread of this process."""
    with mock.patch.object(EngineCoreClient, "make_async_mp_client", ThreadedClient):
        return engine(**arguments)

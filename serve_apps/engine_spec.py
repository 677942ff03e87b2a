"""What an engine deployment serves, as plain values, and what vLLM and Ray are told about it.

spec = EngineSpec(model_id="smollm2-135m:helpdesk@1", path="/…/model", target=Target(...))
engine_kwargs(spec)                    # for vLLM's AsyncEngineArgs
actor_options(spec, cores=2)           # for Ray
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.config import EndpointClass
from factory.scaling import Target
from serve_apps import autoscaling
from serve_apps.autoscaling import ALWAYS_ONE, Share

KV_CACHE_BYTES = 512 * 2**20
"""KV cache of a CPU replica: 23,000 tokens of SmolLM2-135M, 700 for each of 32 requests. Every page
of it is touched at the start, 0.7 s for this much; `engine_kwargs` can ask for more."""

MAX_LORAS = 4
"""Different adapters in one batch of a multi-adapter engine."""

MAX_CPU_LORAS = 16
"""Adapters that such an engine keeps in memory; the others are read again when asked for."""


MESSAGES = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20)}
"""Environment of both ends of a call over gRPC. Serve's own bound of 4 MiB is less than eight
answers of a thousand tokens with twenty log-probabilities each."""


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
    class_: EndpointClass = "batch"
    """The foremost class among its endpoints."""
    priority: int = 1
    """The highest among the teams of its endpoints, from 1."""

    @property
    def scales(self) -> bool:
        """Whether Serve changes the number of its replicas; one that does not always has one."""
        return not (self.standby or self.target.min_replicas == self.target.max_replicas == 1)

    @property
    def takes(self) -> dict[str, float]:
        """What a replica reserves, by Ray's name of the resource."""
        devices = max(1, self.num_gpus)
        return {"CPU": self.num_cpus * devices, "GPU": float(self.num_gpus)}


def engine_environment(spec: EngineSpec, cores: int) -> dict[str, str]:
    """Environment of the replica. On a CPU the model runs inside vLLM's engine process.

    `VLLM_ENABLE_V1_MULTIPROCESSING=0` lets the CPU platform accept the `uni` executor: one
    process less to start, and no hop between engine and worker for every token.
    """
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    if spec.num_gpus:
        return quiet | offline | MESSAGES
    return (
        quiet
        | offline
        | MESSAGES
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


def budgets(
    specs: Iterable[EngineSpec], capacity: Mapping[str, float], fixed: float
) -> dict[str, float]:
    """What the engines that scale share, by resource, of a cluster's `capacity`.

    The others have theirs first, and so have gateways and embedders, `fixed` CPUs in all.
    """
    left = dict(capacity)
    left["CPU"] = left.get("CPU", 0.0) - fixed
    for spec in specs:
        if not spec.scales:
            for resource, amount in spec.takes.items():
                left[resource] = left.get(resource, 0.0) - amount
    return {resource: max(0.0, amount) for resource, amount in left.items()}


def actor_options(spec: EngineSpec, cores: int) -> dict[str, Any]:
    """Ray's options for a replica; a standby of the same options can become one."""
    return {
        "num_cpus": spec.num_cpus,
        "runtime_env": {"env_vars": engine_environment(spec, cores)},
        **({"label_selector": dict(spec.nodes)} if spec.nodes and not spec.num_gpus else {}),
    }


def replicas(
    spec: EngineSpec, initial: int | None = 1, budgets: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Serve's options for how many replicas an engine has, `initial` at first.

    `budgets` are what all engines that scale share, by resource.
    """
    if spec.standby:
        return {"num_replicas": 1}
    share = None
    if budgets is not None:
        resource = "GPU" if spec.num_gpus else "CPU"
        share = Share(
            budget=budgets.get(resource, 0.0),
            unit=spec.takes[resource],
            resource=resource,
            class_=spec.class_,
            priority=spec.priority,
        )
    return autoscaling.replicas(spec.target, initial, share)

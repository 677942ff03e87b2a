"""An encoder's deployment for the embeddings route, and the gateway's handle to it.

    app = embedder_app(EmbedderSpec(path="/…/model"), name="embedder-minilm", cores=2)
    engine = RayEmbedder(handle)           # implements factory.gateway.engine.EmbeddingEngine
    vectors, tokens = await engine.embed(["near the data"])

Requests that wait for the encoder are put together into batches that are bounded in tokens, not in
texts. A long request is cut into pieces of one batch each, so that short ones get in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import psutil
from ray import serve

from factory.gateway.engine import Vectors
from factory.scaling import Target
from factory.scaling.signals import ReplicaSignals
from serve_apps.autoscaling import ALWAYS_ONE, replicas
from serve_apps.engine_stats import Recent
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.ray_engine import translated
from serve_apps.replica_metrics import EmbeddingMetrics
from serve_apps.reports import Report
from serve_apps.versions import deployment_version

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

BATCH_TOKENS = 4096
"""Tokens of one batch: about what fills two CPU cores for half a second with MiniLM."""

BATCH_WAIT_S = 0.005
"""Seconds that a text waits for company. `serve.batch` closes a batch after this time even while
another one is being encoded, so at zero it would put nothing together."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What one embedder deployment serves, as plain values that travel to the replica."""

    path: str
    """Folder with config, tokenizer and safetensors weights."""
    layers: int | None = None
    """Lower layers that are kept; None keeps all."""
    max_ongoing_requests: int = 256
    """Requests a replica takes at once; the rest wait in the handle's queue."""
    num_cpus: float = 0.2
    """CPU share that Ray reserves: small, so that tuning still fits beside it on two cores."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Label selector of the nodes that may hold it; empty lets any."""
    target: Target = ALWAYS_ONE
    """Bounds of its replicas; a floor of 0 lets it sleep."""

    @property
    def standby(self) -> bool:
        """It never is one: a process without its encoder would be most of what it costs."""
        return False


@dataclass(frozen=True, slots=True)
class Piece:
    """Texts of one request that go into one batch together."""

    texts: tuple[str, ...]
    tokens: int


class TextEncoder(Protocol):
    """`factory.embedding.Encoder`, or what stands in for it."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Float32 vectors of shape (texts, dimensions)."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        ...


def pieces(texts: Sequence[str], tokens: Sequence[int], limit: int = BATCH_TOKENS) -> list[Piece]:
    """`texts` in their order, cut so that no piece of several texts exceeds `limit` tokens.

    A single text that is longer counts as `limit`, so that a batch can hold it.
    """
    found: list[Piece] = []
    part: list[str] = []
    size = 0
    for text, count in zip(texts, tokens, strict=True):
        count = min(count, limit)
        if part and size + count > limit:
            found.append(Piece(tuple(part), size))
            part, size = [], 0
        part.append(text)
        size += count
    return [*found, Piece(tuple(part), size)] if part else found


def size_in_tokens(batch: Sequence[Piece]) -> int:
    """The size by which `serve.batch` bounds a batch."""
    return sum(piece.tokens for piece in batch)


class BatchingEncoder:
    """An encoder for many callers at once: counts, cuts, batches, and keeps the loop free."""

    def __init__(self, encoder: TextEncoder) -> None:
        """`encoder` is only ever called from one thread."""
        self._encoder = encoder
        self._running = self._requests = self._tokens = self._steps = 0
        self._busy_s = 0.0
        self._took = Recent()
        self.metrics = EmbeddingMetrics()
        """What Prometheus gets."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

        # A function of this object's own: Serve keeps one queue for each decorated function.
        @serve.batch(
            max_batch_size=BATCH_TOKENS,
            batch_wait_timeout_s=BATCH_WAIT_S,
            max_concurrent_batches=1,
            batch_size_fn=size_in_tokens,
        )
        async def batched(batch: list[Piece]) -> list[Vectors]:
            return await self._together(batch)

        self._batched = batched

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Float32 vectors of shape (texts, dimensions), and the tokens of each text."""
        self._running += 1
        self._requests += 1
        begun = time.perf_counter()
        try:
            found = await self._embedded(texts)
        finally:
            self._running -= 1
        done = time.perf_counter()
        self.metrics.request(done - begun)
        self._took.add(done, (done - begun,))
        return found

    def signals(self) -> ReplicaSignals:
        """The replica's report: tokens as prompt tokens, batches as steps, and the time to a
        request's vectors as that to its first token, which the latency target is about."""
        median, high = self._took.quantiles(time.perf_counter())
        return ReplicaSignals(
            running=self._running,
            requests_total=self._requests,
            prompt_tokens_total=self._tokens,
            steps_total=self._steps,
            busy_s_total=self._busy_s,
            ttft_p50_s=median,
            ttft_p95_s=high,
            memory_bytes=psutil.Process().memory_info().rss,
        )

    async def _embedded(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        tokens = await self._in_thread(self._encoder.count_tokens, texts)
        # One piece after the other: the request then has at most one place in the queue.
        parts = [await self._batched(piece) for piece in pieces(texts, tokens)]
        return np.concatenate(parts), tokens

    async def _together(self, batch: list[Piece]) -> list[Vectors]:
        texts = [text for piece in batch for text in piece.texts]
        begun = time.perf_counter()
        vectors = await self._in_thread(self._encoder.encode, texts)
        self._busy_s += time.perf_counter() - begun
        self._steps += 1
        self._tokens += size_in_tokens(batch)
        self.metrics.batch(len(texts), size_in_tokens(batch))
        ends = np.cumsum([len(piece.texts) for piece in batch])
        return np.split(vectors, ends[:-1])

    async def _in_thread(self, call: Callable[[Sequence[str]], _T], texts: Sequence[str]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, texts)


class Embedder:
    """The replica."""

    def __init__(self, spec: EmbedderSpec) -> None:
        """Load the encoder and encode one text, so that no user pays for lazy initialisation."""
        from factory.embedding.encoder import Encoder

        keep_replica_on_loopback()
        encoder = Encoder.load(Path(spec.path), spec.layers)
        encoder.encode(["Are you ready?"])
        self._encoder = BatchingEncoder(encoder)

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Float32 vectors of shape (texts, dimensions), and the tokens of each text."""
        return await self._encoder.embed(texts)

    async def report(self) -> Report:
        """What the gateway shows Prometheus."""
        return Report(
            replica=serve.get_replica_context().replica_id.unique_id,
            signals=self._encoder.signals().stats(),
            metrics=self._encoder.metrics.text(),
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve collects for the autoscaling policy."""
        return self._encoder.signals().stats()

    async def ping(self) -> bool:
        """True: a replica that is constructed has encoded a text."""
        return True

    async def wake(self) -> bool:
        """True: whoever gets this answer has a replica that is constructed."""
        return True


def embedder_version(spec: EmbedderSpec, cores: int) -> str:
    """Changes when its replicas must be started anew: not with their bounds."""
    return deployment_version(asdict(_bare(spec)), cores)


def _bare(spec: EmbedderSpec) -> EmbedderSpec:
    """What the replica is started with."""
    return replace(spec, target=ALWAYS_ONE)


def embedder_app(
    spec: EmbedderSpec, *, name: str, cores: int, initial: int | None = 1
) -> serve.Application:
    """A bindable deployment of `Embedder`, with `initial` replicas; None leaves as many as run."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    environment = quiet | {"OMP_NUM_THREADS": str(cores)}
    return (
        serve.deployment(Embedder)
        .options(  # type: ignore[no-any-return]
            name=name,
            max_ongoing_requests=spec.max_ongoing_requests,
            ray_actor_options={
                "num_cpus": spec.num_cpus,
                "runtime_env": {"env_vars": environment},
                **({"label_selector": dict(spec.nodes)} if spec.nodes else {}),
            },
            graceful_shutdown_timeout_s=10,
            version=embedder_version(spec, cores),
            _internal=True,
            **replicas(spec.target, initial),
        )
        .bind(_bare(spec))
    )


class RayEmbedder:
    """The gateway's side of an `Embedder`: the `EmbeddingEngine` protocol over a Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """`handle` is the deployment handle that Serve passes to the gateway."""
        self._embed = handle.options(method_name="embed")
        self._ping = handle.options(method_name="ping")

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Vectors of shape (texts, dimensions), and the tokens of each. Raises `EngineError`."""
        with translated():
            reply: Any = await self._embed.remote(list(texts))
        vectors, tokens = reply
        return vectors, tokens

    async def check(self) -> None:
        """Return when a replica takes requests. Raises `EngineError`."""
        with translated():
            await self._ping.remote()

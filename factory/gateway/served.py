"""`Served`: a model in the form in which one tier of an endpoint can answer with it.

served = {"helpdesk": {1: Served(model="smollm2-135m", tier=1, engine=engine, ...)}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from factory.config import Price
from factory.gateway.engine import EmbeddingEngine, Engine, Sleeper

Turns = Sequence[Mapping[str, str]]
"""Messages with plain text content: `{"role": ..., "content": ...}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model on a tier, with everything the gateway must know about it."""

    model: str
    """Name in the catalog."""
    tier: int
    """1, 2 or 3."""
    version: str
    """What distinguishes these weights from the previous ones; part of every cache key."""
    label: str
    """Shown to clients, for example `smollm2-135m/helpdesk@3`."""
    price: Price
    """List price of its tokens."""
    engine: Engine | None = None
    """Generates the answers; None for an encoder."""
    embedder: EmbeddingEngine | None = None
    """Makes embeddings; None for everything else."""
    max_model_len: int
    """Context length in tokens, prompt and answer together."""
    adapter: str | None = None
    """The adapter it wears."""
    count_tokens: Callable[[Turns], int] | None = None
    """Prompt length with the model's own chat template; None when only the engine can tell."""
    most_tokens: Callable[[Turns], int | None] | None = None
    """An upper bound of that, which costs next to nothing; None when there is none."""
    tools: bool = True
    """Its engine recognizes tool calls that the model makes of its own accord."""
    prioritizes: bool = False
    """Its engine takes a `priority` with a request, lower numbers first, as vLLM does."""
    external: bool = False
    """Prompts leave the cluster; closed to restricted endpoints."""
    sleeper: Sleeper | None = None
    """Where its engine may be asleep: knows whether it is, and wakes it."""
    off: str = ""
    """Why it is switched off by configuration; empty when it is on."""

    @property
    def asleep(self) -> bool:
        """True when nothing of it runs and a request would have to wait for its start."""
        return self.sleeper is not None and self.sleeper.asleep

    async def check(self) -> None:
        """Return when it can take requests. Raises `EngineError` when it cannot."""
        answering = self.engine or self.embedder
        assert answering is not None
        await answering.check()


Serving = Mapping[str, Mapping[int, Served]]
"""Endpoint to tier to model."""

Pinned = Mapping[str, Served]
"""What a request may name instead of an endpoint: `MODEL`, `MODEL:ADAPTER`, with `@VERSION`."""

"""`Served`: a model in the form in which one tier of an endpoint can answer with it.

served = {"helpdesk": {1: Served(model="smollm2-135m", tier=1, engine=engine, ...)}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from factory.config import Price
from factory.gateway.engine import Engine

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
    engine: Engine
    """Generates the answers."""
    max_model_len: int
    """Context length in tokens, prompt and answer together."""
    adapter: str | None = None
    """The adapter it wears."""
    count_tokens: Callable[[Turns], int] | None = None
    """Prompt length with the model's own chat template; None when only the engine can tell."""
    external: bool = False
    """Prompts leave the cluster; closed to restricted endpoints."""
    off: str = ""
    """Why it is switched off by configuration; empty when it is on."""


Serving = Mapping[str, Mapping[int, Served]]
"""Endpoint to tier to model."""

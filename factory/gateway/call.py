"""A permitted request, with everything that holds for it: endpoint, models, limits, who pays.

call = Call(name="helpdesk", endpoint=endpoint, request=request, served=served, limits=limits)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from typing_extensions import TypeVar

from factory.config import Endpoint, Limits, Settings
from factory.gateway.body import ChatRequest
from factory.gateway.completions import CompletionRequest
from factory.gateway.embedding_body import EmbeddingRequest
from factory.gateway.served import Served
from factory.ledger.keys import ApiKey

Request = ChatRequest | CompletionRequest
"""What is answered by generating."""

Asked = Request | EmbeddingRequest
"""Whatever a client may ask of a model."""

Q = TypeVar("Q", bound=Asked, default=Request)

_PER_REQUEST = ("max_input_tokens", "max_output_tokens", "max_request_usd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q]):
    """A request on its way to an answer."""

    name: str
    """Of the endpoint."""
    endpoint: Endpoint
    """As configured, or as the guard narrowed it."""
    request: Q
    """What models are asked; redacted where the guard said so."""
    served: Mapping[int, Served]
    """The models of the endpoint, by tier."""
    limits: Limits
    """The tightest of the key's, the endpoint's and the team's bounds on single requests."""
    key: str = ""
    """Under which its answer is kept and shared; empty when it is neither."""
    embedding: bytes = b""
    """The question as float32 values, where something wants to compare it."""
    approved: bool = False
    """A person let it pass, so neither guard nor budget stops it again."""


def scopes(settings: Settings, key: ApiKey, endpoint: str) -> list[tuple[str, Limits]]:
    """Everything whose limits a request counts against, the narrowest first."""
    return [
        (f"key:{key.key_id}", key.limits),
        (f"endpoint:{endpoint}", settings.endpoints[endpoint].limits),
        (f"team:{key.team}", settings.teams[key.team].limits),
    ]


def tightest(limits: Sequence[Limits]) -> Limits:
    """The smallest of each bound on single requests; rates stay with their scopes."""
    bounded = [one for one in limits if one.model_fields_set]
    if not bounded:
        return _UNBOUNDED
    found = {
        name: [value for one in bounded if (value := getattr(one, name)) is not None]
        for name in _PER_REQUEST
    }
    return Limits.model_construct(
        **{name: min(values, default=None) for name, values in found.items()}
    )


_UNBOUNDED = Limits()

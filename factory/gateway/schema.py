"""What the routes' OpenAPI document says: request bodies, parameters, answers and errors.

@app.post("/v1/chat/completions", **schema.CHAT)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fastapi import Depends
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from factory.gateway.body import ChatRequest
from factory.gateway.completions import CompletionRequest
from factory.gateway.embedding_body import EmbeddingRequest
from factory.gateway.outcomes import OutcomeBody
from factory.gateway.reviews import DecisionBody
from factory.ledger.reviews import Status

Json = dict[str, Any]

_BEARER = HTTPBearer(auto_error=False, description="A key from `factory keys create`")
_KEY: Json = {"dependencies": [Depends(_BEARER)]}
"""Puts the key into the document; the gateway itself checks it."""

_STRING: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}


def _object(required: Mapping[str, Json], **optional: Json) -> Json:
    """An object with these properties; others may follow."""
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties}


def _nullable(kind: str) -> Json:
    return {"type": [kind, "null"]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_ANY: Json = {"type": "object"}
_ERROR = _object(
    {
        "error": _object(
            {
                "message": _STRING,
                "type": _STRING,
                "param": _nullable("string"),
                "code": _STRING,
            }
        )
    }
)
_USAGE = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
_CALL = _object(
    {
        "id": _STRING,
        "type": {"const": "function"},
        "function": _object({"name": _STRING, "arguments": _STRING}),
    }
)
_MESSAGE = _object(
    {
        "role": {"const": "assistant"},
        "content": _nullable("string"),
        "refusal": _nullable("string"),
    },
    tool_calls=_list(_CALL),
)
_ENDING: dict[str, Json] = {"logprobs": _nullable("object"), "finish_reason": _STRING}


def _completion(kind: str, choice: Mapping[str, Json]) -> Json:
    return _object(
        {
            "id": _STRING,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": _STRING,
            "choices": _list(_object({"index": _COUNT, **choice, **_ENDING})),
            "usage": _USAGE,
        }
    )


_VECTOR = {"oneOf": [_list({"type": "number"}), _STRING]}
_EMBEDDINGS = _object(
    {
        "object": {"const": "list"},
        "data": _list(
            _object({"object": {"const": "embedding"}, "index": _COUNT, "embedding": _VECTOR})
        ),
        "model": _STRING,
        "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    }
)
_LISTING = _object({"object": {"const": "list"}, "data": _list(_ANY)})


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with its references replaced by what they refer to."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
        return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    return node


def _body(request: type[BaseModel]) -> Json:
    document = request.model_json_schema()
    schema = _inlined(document, document.get("$defs", {}))
    return {"requestBody": {"required": True, "content": _json(schema)}}


_ERRORS = {
    400: "The request cannot be answered as it is",
    401: "The key is missing, unknown or revoked",
    403: "The key does not include this",
    404: "There is no such thing, or it is another team's",
    409: "It has been decided already",
    413: "The body is too large",
    429: "Over a rate, a budget or the number of parallel requests; `Retry-After` says when",
    502: "The guard withheld every answer that came",
    503: "Nothing can answer now, or the ledger is down; `Retry-After` says when",
}
_WAIT = {"Retry-After": {"description": "Seconds", "schema": _STRING}}


def _errors(*statuses: int) -> dict[int | str, Json]:
    return {
        status: {
            "description": _ERRORS[status],
            "content": _json(_ERROR),
            **({"headers": _WAIT} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def _route(good: str, content: Json, *errors: int, **extra: Any) -> Json:
    """A route that needs a key."""
    responses = {200: {"description": good, "content": content}, **_errors(401, 503, *errors)}
    return {"responses": responses, **_KEY, **({"openapi_extra": extra} if extra else {})}


def _in_path(name: str) -> list[Json]:
    return [{"name": name, "in": "path", "required": True, "schema": _STRING}]


def _generating(good: str, content: Json, request: type[BaseModel]) -> Json:
    route = _route(good, content, 400, 403, 404, 413, 429, 502, **_body(request))
    held = (
        "A person must look at it first, or its model is asleep and the client said "
        "`Prefer: respond-async`; `Location` says where to ask"
    )
    route["responses"][202] = {"description": held, "content": _json(_ANY)}
    return route


_EVENTS: Json = {"text/event-stream": {"schema": _object({"data": _STRING})}}
"""Of each server-sent event; the data is a chunk as JSON, and at last `[DONE]`."""

CHAT: Json = _generating(
    "A chat.completion, or its chunks as server-sent events",
    {**_json(_completion("chat.completion", {"message": _MESSAGE})), **_EVENTS},
    ChatRequest,
)
COMPLETIONS: Json = _generating(
    "A text_completion, or its chunks as server-sent events",
    {**_json(_completion("text_completion", {"text": _STRING})), **_EVENTS},
    CompletionRequest,
)
EMBEDDINGS: Json = _generating("One embedding a text", _json(_EMBEDDINGS), EmbeddingRequest)
MODELS: Json = _route("The endpoints", _json(_LISTING))
REQUESTS: Json = _route(
    "The request and its charges", _json(_ANY), 404, parameters=_in_path("request_id")
)
REVIEWS: Json = _route(
    "The requests of your team that wait for a person, the oldest first",
    _json(_LISTING),
    400,
    403,
    parameters=[
        {
            "name": "status",
            "in": "query",
            "required": False,
            "schema": {"enum": list(get_args(Status))},
        }
    ],
)
REVIEW: Json = _route(
    "One review, with the answer once it is decided",
    _json(_ANY),
    403,
    404,
    parameters=_in_path("review_id"),
)
DECIDE: Json = _route(
    "The review as decided",
    _json(_ANY),
    400,
    403,
    404,
    409,
    413,
    parameters=_in_path("review_id"),
    **_body(DecisionBody),
)
OUTCOMES: Json = _route(
    "The outcome as noted",
    _json(_ANY),
    400,
    403,
    404,
    409,
    413,
    **_body(OutcomeBody),
)
METRICS: Json = _route("Prometheus' text format", {"text/plain": {"schema": _STRING}}, 403)
HEALTH: Json = {"responses": {200: {"description": "Alive", "content": _json(_ANY)}}}
READY: Json = {
    "responses": {
        200: {"description": "Ready", "content": _json(_ANY)},
        503: {"description": "Not ready; `problems` says why", "content": _json(_ANY)},
    }
}

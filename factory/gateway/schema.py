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

STRING: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}


def json_object(required: Mapping[str, Json], **optional: Json) -> Json:
    """An object with these properties; others may follow."""
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties}


def _nullable(kind: str) -> Json:
    return {"type": [kind, "null"]}


def list_of(items: Json) -> Json:
    """An array."""
    return {"type": "array", "items": items}


ANY: Json = {"type": "object"}
_ERROR = json_object(
    {
        "error": json_object(
            {
                "message": STRING,
                "type": STRING,
                "param": _nullable("string"),
                "code": STRING,
            }
        )
    }
)
_USAGE = json_object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
_CALL = json_object(
    {
        "id": STRING,
        "type": {"const": "function"},
        "function": json_object({"name": STRING, "arguments": STRING}),
    }
)
_MESSAGE = json_object(
    {
        "role": {"const": "assistant"},
        "content": _nullable("string"),
        "refusal": _nullable("string"),
    },
    tool_calls=list_of(_CALL),
)
_ENDING: dict[str, Json] = {"logprobs": _nullable("object"), "finish_reason": STRING}


def _completion(kind: str, choice: Mapping[str, Json]) -> Json:
    return json_object(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": STRING,
            "choices": list_of(json_object({"index": COUNT, **choice, **_ENDING})),
            "usage": _USAGE,
        }
    )


_VECTOR = {"oneOf": [list_of({"type": "number"}), STRING]}
_EMBEDDINGS = json_object(
    {
        "object": {"const": "list"},
        "data": list_of(
            json_object({"object": {"const": "embedding"}, "index": COUNT, "embedding": _VECTOR})
        ),
        "model": STRING,
        "usage": json_object({"prompt_tokens": COUNT, "total_tokens": COUNT}),
    }
)
_LISTING = json_object({"object": {"const": "list"}, "data": list_of(ANY)})


def json_content(schema: Json) -> Json:
    """The content of a JSON body."""
    return {"application/json": {"schema": schema}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with its references replaced by what they refer to."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
        # A discriminator's mapping would refer to what is not there any more.
        kept = {key: value for key, value in node.items() if key not in ("$defs", "discriminator")}
        return {key: _inlined(value, definitions) for key, value in kept.items()}
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    return node


def _body(request: type[BaseModel]) -> Json:
    document = request.model_json_schema()
    schema = _inlined(document, document.get("$defs", {}))
    return {"requestBody": {"required": True, "content": json_content(schema)}}


_ERRORS = {
    400: "The request cannot be answered as it is",
    401: "The key is missing, unknown or revoked",
    403: "The key does not include this",
    404: "There is no such thing, or it is another team's",
    409: "It has been decided already, or does not fit what is there",
    413: "The body is too large",
    429: "Over a rate, a budget or the number of parallel requests; `Retry-After` says when",
    502: "The guard withheld every answer that came",
    503: "Nothing can answer now, or the ledger is down; `Retry-After` says when",
}
_WAIT = {"Retry-After": {"description": "Seconds", "schema": STRING}}


def _errors(*statuses: int) -> dict[int | str, Json]:
    return {
        status: {
            "description": _ERRORS[status],
            "content": json_content(_ERROR),
            **({"headers": _WAIT} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def route(good: str, content: Json, *errors: int, **extra: Any) -> Json:
    """A route that needs a key."""
    responses = {200: {"description": good, "content": content}, **_errors(401, 503, *errors)}
    return {"responses": responses, **_KEY, **({"openapi_extra": extra} if extra else {})}


def in_path(name: str) -> list[Json]:
    """A parameter that is a part of the path."""
    return [{"name": name, "in": "path", "required": True, "schema": STRING}]


def _generating(good: str, content: Json, request: type[BaseModel]) -> Json:
    found = route(good, content, 400, 403, 404, 413, 429, 502, **_body(request))
    held = (
        "A person must look at it first, or its model is asleep and the client said "
        "`Prefer: respond-async`; `Location` says where to ask"
    )
    found["responses"][202] = {"description": held, "content": json_content(ANY)}
    return found


def embedding(
    good: str, content: Json, request: type[BaseModel], *errors: int, **extra: Any
) -> Json:
    """A route whose texts are embedded."""
    found = route(good, content, 400, 403, 404, 413, 429, *errors, **_body(request), **extra)
    held = "A person must look at it first; `Location` says where to ask"
    found["responses"][202] = {"description": held, "content": json_content(ANY)}
    return found


_EVENTS: Json = {"text/event-stream": {"schema": json_object({"data": STRING})}}
"""Of each server-sent event; the data is a chunk as JSON, and at last `[DONE]`."""

CHAT: Json = _generating(
    "A chat.completion, or its chunks as server-sent events",
    {**json_content(_completion("chat.completion", {"message": _MESSAGE})), **_EVENTS},
    ChatRequest,
)
COMPLETIONS: Json = _generating(
    "A text_completion, or its chunks as server-sent events",
    {**json_content(_completion("text_completion", {"text": STRING})), **_EVENTS},
    CompletionRequest,
)
EMBEDDINGS: Json = _generating("One embedding a text", json_content(_EMBEDDINGS), EmbeddingRequest)
MODELS: Json = route("The endpoints", json_content(_LISTING))
REQUESTS: Json = route(
    "The request and its charges", json_content(ANY), 404, parameters=in_path("request_id")
)
REVIEWS: Json = route(
    "The requests of your team that wait for a person, the oldest first",
    json_content(_LISTING),
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
REVIEW: Json = route(
    "One review, with the answer once it is decided",
    json_content(ANY),
    403,
    404,
    parameters=in_path("review_id"),
)
DECIDE: Json = route(
    "The review as decided",
    json_content(ANY),
    400,
    403,
    404,
    409,
    413,
    parameters=in_path("review_id"),
    **_body(DecisionBody),
)
OUTCOMES: Json = route(
    "The outcome as noted",
    json_content(ANY),
    400,
    403,
    404,
    409,
    413,
    **_body(OutcomeBody),
)
METRICS: Json = route("Prometheus' text format", {"text/plain": {"schema": STRING}}, 403)
HEALTH: Json = {"responses": {200: {"description": "Alive", "content": json_content(ANY)}}}
READY: Json = {
    "responses": {
        200: {"description": "Ready", "content": json_content(ANY)},
        503: {"description": "Not ready; `problems` says why", "content": json_content(ANY)},
    }
}

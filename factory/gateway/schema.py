"""What the routes' OpenAPI document says: request bodies, parameters, answers and errors."""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from fastapi.security import HTTPBearer

from factory.gateway.body import ChatRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_BEARER = HTTPBearer(auto_error=False, description="A key from `factory keys create`")


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with its references replaced by what they refer to."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
        return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    return node


def _request_body() -> dict[str, Any]:
    document = ChatRequest.model_json_schema()
    schema = _inlined(document, document.get("$defs", {}))
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(good: str, content: dict[str, Any], **errors: str) -> dict[int | str, Any]:
    answers: dict[int | str, Any] = {200: {"description": good, "content": content}}
    for status, description in errors.items():
        answers[int(status.removeprefix("s"))] = {
            "description": description,
            "content": {"application/json": {"schema": _ERROR}},
        }
    return answers


_KEY: dict[str, Any] = {"dependencies": [Depends(_BEARER)]}
"""Puts the key into the document; the gateway itself checks it."""

CHAT: dict[str, Any] = {
    "responses": _responses(
        "A chat.completion, or its chunks as server-sent events",
        {**_OBJECT, "text/event-stream": {"schema": {"type": "string"}}},
        s400="The request cannot be answered as it is",
        s401="The key is missing, unknown or revoked",
        s403="The key does not include this endpoint",
        s404="There is no such endpoint",
        s413="The body is too large",
        s503="No model can answer now, or the ledger is down",
    ),
    **_KEY,
    "openapi_extra": {"requestBody": _request_body()},
}
MODELS: dict[str, Any] = {
    "responses": _responses("The endpoints", _OBJECT, s401="The key is not valid"),
    **_KEY,
}
REQUESTS: dict[str, Any] = {
    "responses": _responses(
        "The request and its charges",
        _OBJECT,
        s401="The key is not valid",
        s404="Your team has no such request",
    ),
    **_KEY,
    "openapi_extra": {
        "parameters": [
            {
                "name": "request_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
            }
        ],
    },
}
HEALTH: dict[str, Any] = {"responses": _responses("Alive", _OBJECT)}
READY: dict[str, Any] = {
    "responses": {
        **_responses("Ready", _OBJECT),
        503: {"description": "Not ready; `problems` says why", "content": _OBJECT},
    }
}

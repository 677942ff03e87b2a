"""Errors as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}`.

raise ApiError(404, "model_not_found", "there is no endpoint 'x'", param="model")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that ends without an answer, with the HTTP status its client sees."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def payload(self) -> dict[str, Any]:
        """The error object, ready for JSON."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def body(self) -> bytes:
        """The error object as JSON bytes."""
        return to_json(self.payload())


def unavailable(message: str, retry_after_s: float = 1.0) -> ApiError:
    """503 `service_unavailable` with a `Retry-After` of whole seconds, at least one."""
    seconds = max(1, round(retry_after_s))
    return ApiError(503, "service_unavailable", message, headers={"Retry-After": str(seconds)})

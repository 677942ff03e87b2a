"""OpenAI's routes in front of a `Gateway`, as a FastAPI application.

app = build_app(gateway)
uvicorn.run(app)    # or serve.ingress(app) on Ray Serve
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from factory.gateway import access, schema
from factory.gateway.body import parse, read
from factory.gateway.call import Request as Asked
from factory.gateway.completions import parse_completion
from factory.gateway.engine import Route
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.pipeline import Gateway
from factory.gateway.replies import JSON, Reply
from factory.gateway.reviews import shown
from factory.gateway.store_routes import add_store_routes
from factory.gateway.stream import EventStream, error_response
from factory.ledger.errors import LedgerError
from factory.telemetry.exposition import CONTENT_TYPE

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _Direct(APIRoute):
    """A documented route whose handler gets the bare request.

    FastAPI's own resolving of parameters would cost as much as a whole cache hit.
    """

    def get_route_handler(self) -> Handler:
        return self.endpoint


class _App(FastAPI):
    """FastAPI, but for the routes that models answer: these skip its layers and its routing, which
    take a tenth of the gateway's time for a request. They stay in the document."""

    direct: Mapping[str, Handler] = {}
    """By path, for POST."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or request."""
        handler = None
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self.direct.get(scope["path"])
        if handler is None:
            await super().__call__(scope, receive, send)
            return
        try:
            response = await handler(Request(scope, receive, send))
        except ApiError as error:
            response = error_response(error)
        except LedgerError as error:
            response = _no_ledger(error)
        await response(scope, receive, send)


def build_app(gateway: Gateway) -> FastAPI:
    """The application. It owns nothing: closing the ledger and the engines is the caller's."""
    app = _App(
        title="Budget AI factory",
        version="1",
        description="OpenAI-compatible answers from the cheapest tier that is good enough.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.router.route_class = _Direct
    limit = gateway.settings.gateway.max_body_bytes

    async def generate(request: Request, parse: Callable[[bytes], Asked], route: Route) -> Response:
        # One pass over the raw headers: each look-up by Starlette's would walk and decode them all.
        headers = dict(request.scope["headers"])
        authorization, control = headers.get(b"authorization"), headers.get(b"cache-control", b"")
        reply = await gateway.generate(
            None if authorization is None else authorization.decode("latin-1"),
            partial(_body, request, limit),
            parse,
            control.decode("latin-1"),
            route,
            headers.get(b"prefer", b"").decode("latin-1"),
        )
        return _whole(reply) if isinstance(reply, Reply) else EventStream(reply)

    @app.post("/v1/chat/completions", **schema.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; `model` names an endpoint, or a model to pin."""
        return await generate(request, parse, "chat")

    @app.post("/v1/completions", **schema.COMPLETIONS)
    async def completions(request: Request) -> Response:
        """Continue a text; the older route."""
        return await generate(request, parse_completion, "completions")

    @app.post("/v1/embeddings", **schema.EMBEDDINGS)
    async def embeddings(request: Request) -> Response:
        """Turn texts into vectors; `model` names an endpoint with `task: embed`."""
        authorization = request.headers.get("authorization")
        return _whole(await gateway.embed(authorization, partial(_body, request, limit)))

    @app.get("/v1/reviews", **schema.REVIEWS)
    async def reviews(request: Request) -> Response:
        """What waits for a person, or waited; for keys with the role `reviewer`."""
        key = await gateway.key(request.headers.get("authorization"))
        found = await gateway.reviews.waiting(key, request.query_params.get("status"))
        return _json({"object": "list", "data": [shown(review) for review in found]})

    @app.get("/v1/reviews/{review_id}", **schema.REVIEW)
    async def review(request: Request) -> Response:
        """One review, for its own client and for reviewers; its answer once a person decided."""
        authorization = request.headers.get("authorization")
        return _whole(await gateway.review(authorization, request.path_params["review_id"]))

    @app.post("/v1/reviews/{review_id}", **schema.DECIDE)
    async def decide(request: Request) -> Response:
        """Approve, edit or reject, once."""
        key = await gateway.key(request.headers.get("authorization"))
        raw = await _body(request, limit)
        return _json(
            shown(await gateway.reviews.decide(key, request.path_params["review_id"], raw))
        )

    @app.post("/v1/outcomes", **schema.OUTCOMES)
    async def outcomes(request: Request) -> Response:
        """Say whether an answer did its job, and how many minutes people spent on it."""
        key = await gateway.key(request.headers.get("authorization"))
        return _json(await gateway.outcomes.report(key, await _body(request, limit)))

    add_store_routes(app, gateway, lambda request: partial(_body, request, limit))

    @app.get("/v1/models", **schema.MODELS)
    async def models(request: Request) -> Response:
        """The endpoints this key may use, and who answers on each tier."""
        key = await gateway.key(request.headers.get("authorization"))
        names = access.usable(gateway.settings, key)
        return _json({"object": "list", "data": [_model(gateway, name) for name in names]})

    @app.get("/v1/requests/{request_id}", **schema.REQUESTS)
    async def explain(request: Request) -> Response:
        """Why a request of this team was routed as it was, and what each part cost."""
        request_id = request.path_params["request_id"]
        return _json(await gateway.explain(request.headers.get("authorization"), request_id))

    @app.get("/healthz", **schema.HEALTH)
    async def healthz(request: Request) -> Response:
        """The process is alive."""
        return _json({"status": "ok"})

    @app.get("/readyz", **schema.READY)
    async def readyz(request: Request) -> Response:
        """The ledger answers, and for each endpoint at least one model."""
        state = await gateway.ready()
        status = "ready" if state.ready else "not ready"
        found = {"status": status, "problems": state.problems, "asleep": state.asleep}
        return _json(found, 200 if state.ready else 503)

    @app.get("/metrics", **schema.METRICS)
    async def metrics(request: Request) -> Response:
        """Traffic and state for Prometheus; beyond loopback for keys with the role `metrics`."""
        text = await gateway.metrics(request.headers.get("authorization"))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    @app.exception_handler(LedgerError)
    async def ledger_error(request: Request, error: Exception) -> Response:
        return _no_ledger(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
        return error_response(ApiError(error.status_code, code, message, headers=error.headers))

    app.direct = {
        "/v1/chat/completions": chat_completions,
        "/v1/completions": completions,
        "/v1/embeddings": embeddings,
    }
    return app


def _no_ledger(error: Exception) -> Response:
    _log.error("the ledger does not answer: %s", error)
    return error_response(unavailable("the ledger does not answer; try again soon"))


async def _body(request: Request, limit: int) -> bytes:
    try:
        return await read(request.stream(), request.headers.get("content-length"), limit)
    except ClientDisconnect:
        raise ApiError(400, "incomplete_body", "the request body broke off") from None


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    tiers = [
        {
            "tier": served.tier,
            "model": served.label,
            "version": served.version,
            "max_model_len": served.max_model_len,
            "off": served.off or None,
        }
        for _, served in sorted(gateway.serving.get(name, {}).items())
    ]
    team = gateway.settings.endpoints[name].team
    return {"id": name, "object": "model", "created": 0, "owned_by": team, "served_by": tiers}


def _whole(reply: Reply) -> Response:
    return Response(reply.body, headers=dict(reply.headers), media_type=reply.media_type)


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type=JSON)

"""OpenAI's routes of vector stores.

add_store_routes(app, gateway, read_body)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from factory.gateway import store_schema as schema
from factory.gateway.pipeline import Gateway
from factory.gateway.replies import Reply

Reading = Callable[[Request], Callable[[], Awaitable[bytes]]]
"""Gives for a request what reads its body."""


def add_store_routes(app: FastAPI, gateway: Gateway, body: Reading) -> None:
    """Put the routes into the application."""
    stores, retrieval = gateway.stores, gateway.retrieval

    @app.post("/v1/vector_stores", **schema.CREATE)
    async def create_vector_store(request: Request) -> Response:
        """Make a vector store of your team, embedded by one of its endpoints."""
        return _response(await stores.create(_key(request), body(request)))

    @app.get("/v1/vector_stores", **schema.LIST)
    async def list_vector_stores(request: Request) -> Response:
        """The vector stores that this key may use."""
        return _response(await stores.listed(_key(request), request.query_params))

    @app.get("/v1/vector_stores/{vector_store_id}", **schema.GET)
    async def get_vector_store(request: Request) -> Response:
        """One vector store."""
        return _response(await stores.get(_key(request), _id(request)))

    @app.delete("/v1/vector_stores/{vector_store_id}", **schema.DELETE)
    async def delete_vector_store(request: Request) -> Response:
        """Delete a vector store with everything in it."""
        return _response(await stores.delete(_key(request), _id(request)))

    @app.post("/v1/vector_stores/{vector_store_id}/files", **schema.ADD)
    async def add_file(request: Request) -> Response:
        """Put a text into a vector store; a file with the same id is replaced."""
        return _response(await stores.add(_key(request), _id(request), body(request)))

    @app.get("/v1/vector_stores/{vector_store_id}/files", **schema.FILES)
    async def list_files(request: Request) -> Response:
        """The files of a vector store."""
        return _response(await stores.files(_key(request), _id(request), request.query_params))

    @app.get("/v1/vector_stores/{vector_store_id}/files/{file_id}", **schema.FILE)
    async def get_file(request: Request) -> Response:
        """One file of a vector store."""
        file_id = request.path_params["file_id"]
        return _response(await stores.file(_key(request), _id(request), file_id))

    @app.delete("/v1/vector_stores/{vector_store_id}/files/{file_id}", **schema.REMOVE)
    async def remove_file(request: Request) -> Response:
        """Take a file out of a vector store."""
        file_id = request.path_params["file_id"]
        return _response(await stores.remove(_key(request), _id(request), file_id))

    @app.post("/v1/vector_stores/{vector_store_id}/search", **schema.SEARCH)
    async def search(request: Request) -> Response:
        """Find the chunks nearest to a question; the same search again is free."""
        control = request.headers.get("cache-control", "")
        found = await retrieval.search(_key(request), _id(request), body(request), control)
        return _response(found)


def _key(request: Request) -> str | None:
    return request.headers.get("authorization")


def _id(request: Request) -> str:
    found: str = request.path_params["vector_store_id"]
    return found


def _response(reply: Reply) -> Response:
    return Response(reply.body, headers=dict(reply.headers), media_type=reply.media_type)

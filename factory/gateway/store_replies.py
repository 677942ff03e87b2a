"""Vector stores, their files and what was found in them, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic_core import to_json

from factory.gateway.errors import ApiError, unavailable
from factory.gateway.replies import Reply
from factory.vectors import Found, Kept, Store, UnknownStore, VectorsError
from factory.vectors.store import usage

PAGE = 20
"""Entries of a listing where the client does not say."""
MOST_PAGE = 100

_T = TypeVar("_T")


def problem(error: VectorsError) -> ApiError:
    """What the client is told: 404 for a store that is not there, else 503."""
    if isinstance(error, UnknownStore):
        return ApiError(404, "vector_store_not_found", f"{error}; GET /v1/vector_stores lists them")
    return unavailable(f"the vector stores do not answer: {error}"[:500], 5)


def no_file(store_id: str, file_id: str) -> ApiError:
    """404 for a file that is not there."""
    what = f"vector store '{store_id}' has no file '{file_id[:128]}'"
    return ApiError(404, "file_not_found", what)


def store_object(store: Store, files: Sequence[Kept]) -> dict[str, Any]:
    """A `vector_store`, with the endpoint that embeds for it as `model`."""
    return {
        "id": store.store_id,
        "object": "vector_store",
        "created_at": store.created_at,
        "name": store.name,
        "usage_bytes": usage(store, files),
        "file_counts": {
            "in_progress": 0,
            "completed": len(files),
            "failed": 0,
            "cancelled": 0,
            "total": len(files),
        },
        "status": "completed",
        "last_active_at": max((one.created_at for one in files), default=store.created_at),
        "metadata": dict(store.metadata),
        "model": store.endpoint,
        "embedder": store.embedder,
        "dimensions": store.dimensions,
    }


def file_object(store_id: str, file: Kept) -> dict[str, Any]:
    """A `vector_store.file`."""
    return {
        "id": file.file_id,
        "object": "vector_store.file",
        "created_at": file.created_at,
        "vector_store_id": store_id,
        "filename": file.filename,
        "status": "completed",
        "last_error": None,
        "usage_bytes": file.characters,
        "chunks": file.chunks,
        "attributes": dict(file.attributes),
    }


def found_object(found: Found) -> dict[str, Any]:
    """One result of a search."""
    return {
        "file_id": found.file.file_id,
        "filename": found.file.filename,
        "score": round(found.score, 6),
        "attributes": dict(found.file.attributes),
        "content": [{"type": "text", "text": found.text}],
        "chunk": found.seq,
    }


def results(queries: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The body of a search's reply."""
    return to_json(
        {
            "object": "vector_store.search_results.page",
            "search_query": list(queries),
            "data": rows,
            "has_more": False,
            "next_page": None,
        }
    )


def deleted(kind: str, name: str) -> Reply:
    """The reply to a deletion."""
    return Reply(to_json({"id": name, "object": f"{kind}.deleted", "deleted": True}), {})


def page(
    entries: Sequence[_T], query: Mapping[str, str], name: Callable[[_T], str]
) -> tuple[list[_T], bool]:
    """The part of a listing that `limit`, `order`, `after` and `before` ask for, and whether there
    is more. `entries` are the oldest first. Raises `ApiError` 400."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _wrong("order", f"asc or desc, not '{order[:20]}'")
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_PAGE):
        raise _wrong("limit", f"from 1 to {MOST_PAGE}, not '{limit[:20]}'")
    chosen = list(entries if order == "asc" else reversed(entries))
    names = [name(one) for one in chosen]
    if (after := query.get("after")) is not None:
        start = _place("after", after, names) + 1
        chosen, names = chosen[start:], names[start:]
    if (before := query.get("before")) is not None:
        chosen = chosen[: _place("before", before, names)]
    return chosen[: int(limit)], len(chosen) > int(limit)


def _place(param: str, wanted: str, names: list[str]) -> int:
    if wanted not in names:
        raise _wrong(param, f"an id of this listing, not '{wanted[:128]}'")
    return names.index(wanted)


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{param} must be {what}", param=param)


def listing(data: Sequence[Mapping[str, Any]], more: bool) -> Reply:
    """The reply to a request for a list."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    whole = {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}
    return Reply(to_json(whole), {})

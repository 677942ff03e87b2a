"""What the OpenAPI document says about the routes of vector stores.

@app.post("/v1/vector_stores", **store_schema.CREATE)
"""

from __future__ import annotations

from factory.gateway.schema import (
    ANY,
    COUNT,
    STRING,
    Json,
    embedding,
    in_path,
    json_content,
    json_object,
    list_of,
    route,
)
from factory.gateway.store_bodies import FileBody, SearchBody, StoreBody

_STORE = json_object(
    {
        "id": STRING,
        "object": {"const": "vector_store"},
        "created_at": COUNT,
        "name": STRING,
        "usage_bytes": COUNT,
        "file_counts": json_object({"completed": COUNT, "total": COUNT}),
        "status": {"const": "completed"},
        "last_active_at": COUNT,
        "metadata": ANY,
        "model": STRING,
        "embedder": STRING,
        "dimensions": COUNT,
    }
)
_FILE = json_object(
    {
        "id": STRING,
        "object": {"const": "vector_store.file"},
        "created_at": COUNT,
        "vector_store_id": STRING,
        "filename": STRING,
        "status": {"const": "completed"},
        "usage_bytes": COUNT,
        "chunks": COUNT,
        "attributes": ANY,
    }
)
_FOUND = json_object(
    {
        "file_id": STRING,
        "filename": STRING,
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "attributes": ANY,
        "content": list_of(json_object({"type": {"const": "text"}, "text": STRING})),
    }
)
_RESULTS = json_object(
    {
        "object": {"const": "vector_store.search_results.page"},
        "search_query": list_of(STRING),
        "data": list_of(_FOUND),
        "has_more": {"const": False},
        "next_page": {"type": "null"},
    }
)
_DELETED = json_object({"id": STRING, "object": STRING, "deleted": {"const": True}})


def _listing(entry: Json) -> Json:
    return json_object(
        {"object": {"const": "list"}, "data": list_of(entry), "has_more": {"type": "boolean"}}
    )


def _in_query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_PAGE = [
    _in_query("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
    _in_query("order", {"enum": ["asc", "desc"]}),
    _in_query("after", STRING),
    _in_query("before", STRING),
]
_STORE_ID = in_path("vector_store_id")
_BOTH_IDS = [*_STORE_ID, *in_path("file_id")]

CREATE: Json = embedding("The store", json_content(_STORE), StoreBody)
LIST: Json = route(
    "The stores of your team, the newest first",
    json_content(_listing(_STORE)),
    400,
    403,
    parameters=_PAGE,
)
GET: Json = route("The store", json_content(_STORE), 403, 404, parameters=_STORE_ID)
DELETE: Json = route("It is gone", json_content(_DELETED), 403, 404, parameters=_STORE_ID)
ADD: Json = embedding(
    "The file, embedded", json_content(_FILE), FileBody, 409, parameters=_STORE_ID
)
FILES: Json = route(
    "The files of the store, the newest first",
    json_content(_listing(_FILE)),
    400,
    403,
    404,
    parameters=[*_STORE_ID, *_PAGE],
)
FILE: Json = route("The file", json_content(_FILE), 403, 404, parameters=_BOTH_IDS)
REMOVE: Json = route("It is gone", json_content(_DELETED), 403, 404, parameters=_BOTH_IDS)
SEARCH: Json = embedding(
    "The nearest chunks, the nearest first",
    json_content(_RESULTS),
    SearchBody,
    409,
    parameters=_STORE_ID,
)

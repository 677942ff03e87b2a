"""`VectorStores`: vector stores on LanceDB, in a folder or an object store, a folder a team.

    stores = VectorStores("/data/vectors")        # or s3://bucket/vectors, gs://bucket/vectors
    await stores.create("support", store)
    await stores.put("support", store.store_id, file, texts, vectors)
    await stores.search("support", store.store_id, vector, most=5)

A store is one table, so each change of it is atomic and has a version, which every process sees at
once. Its description is in the table's schema. LanceDB is imported with the first use: it takes a
second and 200 MB, which a process without stores need not pay.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Sequence
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache
from numpy.typing import NDArray

from factory.vectors.errors import UnknownStore, VectorsError
from factory.vectors.store import File, Found, Kept, Store, Update, is_store_id

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

_log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

_DESCRIPTION = b"factory"
"""Under which the schema holds the store's description."""

_OPEN = 256
"""Tables held open."""

_TIDY_EVERY = 20
"""Changes after which small fragments are put together and old versions removed."""

_OLD = timedelta(hours=1)
"""Versions younger than this may still be read by a search."""

_FILE = ["file_id", "filename", "attributes", "created_at"]

_FAILURES = (RuntimeError, OSError, ValueError, pa.ArrowException)
"""What LanceDB raises."""


class VectorStores:
    """The stores of all teams under one URL, for one event loop."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._connections: dict[str, AsyncConnection] = {}
        self._tables: LRUCache[tuple[str, str], tuple[AsyncTable, Store]] = LRUCache(_OPEN)

    async def create(self, team: str, store: Store) -> None:
        """Make an empty store. Raises `VectorsError`."""
        schema = pa.schema(
            [
                ("file_id", pa.string()),
                ("filename", pa.string()),
                ("attributes", pa.string()),
                ("created_at", pa.int64()),
                ("seq", pa.int32()),
                ("size", pa.int32()),
                ("text", pa.string()),
                ("vector", pa.list_(pa.float32(), store.dimensions)),
            ],
            metadata={_DESCRIPTION: store.packed()},
        )
        try:
            connection = await self._connection(team)
            await connection.create_table(store.store_id, schema=schema)
        except _FAILURES as error:
            raise VectorsError(f"a vector store cannot be made: {error}") from error

    async def all(self, team: str) -> list[Store]:
        """The team's stores, the oldest first. Raises `VectorsError`."""
        try:
            connection = await self._connection(team)
            names: list[str] = []
            page = await connection.list_tables()
            names += page.tables
            while page.page_token:
                page = await connection.list_tables(page_token=page.page_token)
                names += page.tables
        except _FAILURES as error:
            raise VectorsError(f"the vector stores cannot be listed: {error}") from error
        found = []
        for name in names:
            try:
                found.append(await self.get(team, name))
            except UnknownStore:
                self._tables.pop((team, name), None)  # deleted meanwhile
        return sorted(found, key=lambda store: (store.created_at, store.store_id))

    async def get(self, team: str, store_id: str) -> Store:
        """What a store was made with. Raises `UnknownStore`, `VectorsError`."""
        return (await self._table(team, store_id))[1]

    async def delete(self, team: str, store_id: str) -> None:
        """Remove a store with everything in it. Raises `UnknownStore`, `VectorsError`."""
        await self._table(team, store_id)
        try:
            await (await self._connection(team)).drop_table(store_id)
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error
        finally:
            self._tables.pop((team, store_id), None)

    async def version(self, team: str, store_id: str) -> int:
        """Changes with every change of the store. Raises `UnknownStore`, `VectorsError`."""
        table, _ = await self._table(team, store_id)
        try:
            return await table.version()
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error

    async def put(
        self, team: str, store_id: str, file: File, texts: Sequence[str], vectors: Vectors
    ) -> Update:
        """Put a file in, in place of one with the same id, all its chunks at once.

        `vectors` has shape (texts, dimensions). Raises `UnknownStore`, `VectorsError`.
        """
        table, store = await self._table(team, store_id)
        if vectors.shape != (len(texts), store.dimensions):
            raise VectorsError(
                f"{len(texts)} texts of {store.dimensions} dimensions were expected, "
                f"not {vectors.shape}"
            )
        count = len(texts)
        attributes = json.dumps(dict(file.attributes), sort_keys=True)
        rows = pa.table(
            {
                "file_id": [file.file_id] * count,
                "filename": [file.filename] * count,
                "attributes": [attributes] * count,
                "created_at": pa.array([file.created_at] * count, pa.int64()),
                "seq": pa.array(range(count), pa.int32()),
                "size": pa.array([len(text) for text in texts], pa.int32()),
                "text": list(texts),
                "vector": pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(vectors, np.float32).ravel()), store.dimensions
                ),
            }
        )
        replacing = (
            table.merge_insert(["file_id", "seq"])
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(f"file_id = '{file.file_id}'")
        )
        try:
            result = await replacing.execute(rows)
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error
        await self._tidy(table, result.version)
        return Update(result.version, result.num_deleted_rows)

    async def remove(self, team: str, store_id: str, file_id: str) -> Update:
        """Take a file out. Raises `UnknownStore`, `VectorsError`."""
        table, _ = await self._table(team, store_id)
        try:
            result: Any = await table.delete(f"file_id = '{file_id}'")
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error
        await self._tidy(table, result.version)
        return Update(result.version, result.num_deleted_rows)

    async def files(self, team: str, store_id: str) -> list[Kept]:
        """The store's files, the oldest first. Raises `UnknownStore`, `VectorsError`."""
        table, _ = await self._table(team, store_id)
        try:
            rows = await table.query().select([*_FILE, "size"]).to_arrow()
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error
        grouped = rows.group_by(_FILE).aggregate([("size", "count"), ("size", "sum")])
        found = [
            Kept(
                file_id=row["file_id"],
                filename=row["filename"],
                attributes=json.loads(row["attributes"]),
                created_at=row["created_at"],
                chunks=row["size_count"],
                characters=row["size_sum"],
            )
            for row in grouped.to_pylist()
        ]
        return sorted(found, key=lambda file: (file.created_at, file.file_id))

    async def search(
        self,
        team: str,
        store_id: str,
        vector: Vectors,
        most: int,
        among: Collection[str] | None = None,
    ) -> list[Found]:
        """The `most` chunks nearest to a vector of shape (dimensions,), the nearest first.

        `among` bounds the search to files by their ids. Raises `UnknownStore`, `VectorsError`.
        """
        if among is not None and not among:
            return []
        table, _ = await self._table(team, store_id)
        query = (
            table.query()
            .nearest_to(vector)
            .distance_type("cosine")
            .limit(most)
            .select([*_FILE, "seq", "text", "_distance"])
        )
        if among is not None:
            ids = ", ".join(f"'{one}'" for one in sorted(among))
            query = query.where(f"file_id IN ({ids})")
        try:
            rows = (await query.to_arrow()).to_pylist()
        except _FAILURES as error:
            raise await self._problem(team, store_id, error) from error
        return [_found(row) for row in rows]

    async def _connection(self, team: str) -> AsyncConnection:
        known = self._connections.get(team)
        if known is None:
            lancedb: Any = await asyncio.to_thread(import_module, "lancedb")
            known = await lancedb.connect_async(
                f"{self._url}/{team}", read_consistency_interval=timedelta(0)
            )
            self._connections[team] = known
        return known

    async def _table(self, team: str, store_id: str) -> tuple[AsyncTable, Store]:
        """The open table. Raises `UnknownStore`, `VectorsError`."""
        if not is_store_id(store_id):
            raise UnknownStore(f"there is no vector store '{store_id[:80]}'")
        known = self._tables.get((team, store_id))
        if known is None:
            try:
                table = await (await self._connection(team)).open_table(store_id)
                described = (await table.schema()).metadata or {}
                known = table, Store.unpacked(described[_DESCRIPTION])
            except ValueError as error:
                if "not found" in str(error):
                    raise UnknownStore(f"there is no vector store '{store_id}'") from error
                raise VectorsError(f"vector store '{store_id}' cannot be read: {error}") from error
            except (RuntimeError, OSError, KeyError) as error:
                raise VectorsError(f"vector store '{store_id}' cannot be read: {error}") from error
            self._tables[team, store_id] = known
        return known

    async def _problem(self, team: str, store_id: str, error: Exception) -> VectorsError:
        """What is wrong with an open table that fails: another process may have deleted it."""
        self._tables.pop((team, store_id), None)
        try:
            await self._table(team, store_id)
        except VectorsError as found:
            return found
        return VectorsError(f"vector store '{store_id}' does not answer: {error}")

    async def _tidy(self, table: AsyncTable, version: int) -> None:
        if version % _TIDY_EVERY:
            return
        try:
            await table.optimize(cleanup_older_than=_OLD)
        except _FAILURES as error:
            # Two processes that tidy at once get in each other's way; the next change tries again.
            _log.info("a vector store stays as it is: %s", error)


def _found(row: dict[str, Any]) -> Found:
    file = File(
        file_id=row["file_id"],
        filename=row["filename"],
        attributes=json.loads(row["attributes"]),
        created_at=row["created_at"],
    )
    score = min(max(1.0 - row["_distance"], 0.0), 1.0)
    return Found(file=file, seq=row["seq"], text=row["text"], score=score)

"""The vector stores of a gateway's teams: made, filled and deleted.

    reply = await stores.create(authorization, read_body)
    reply = await stores.add(authorization, "vs_...", read_body)

A store belongs to its team and to one endpoint with `task: embed`, whose encoder, filters, rates
and budgets hold for it. What the guard redacts is neither embedded nor kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json

from factory.config import Settings
from factory.gateway import access
from factory.gateway.admission import Admission, expected_tokens
from factory.gateway.answers import CHARACTERS_PER_TOKEN, estimate_tokens
from factory.gateway.clock import Clock
from factory.gateway.embedding import Embedding
from factory.gateway.embedding_body import MOST_INPUTS
from factory.gateway.errors import ApiError
from factory.gateway.guarding import Guarding
from factory.gateway.journey import Journey
from factory.gateway.replies import Reply
from factory.gateway.served import Served, Serving
from factory.gateway.settlement import Settlement
from factory.gateway.store_bodies import (
    ByLength,
    FileBody,
    StoreFile,
    StoreMake,
    parse_file,
    parse_store,
)
from factory.gateway.store_replies import (
    deleted,
    file_object,
    listing,
    no_file,
    page,
    problem,
    store_object,
)
from factory.ledger import audit
from factory.ledger.keys import ApiKey
from factory.ledger.store import Ledger
from factory.vectors import File, Kept, Store, UnknownStore, VectorsError, VectorStores, chunked
from factory.vectors.store import is_file_id, new_file_id, new_store_id

Body = Callable[[], Awaitable[bytes]]


class Stores:
    """What a client does with stores, but for searching; see `factory.gateway.retrieval`."""

    def __init__(
        self,
        *,
        settings: Settings,
        ledger: Ledger,
        vectors: VectorStores,
        serving: Serving,
        admission: Admission,
        guarding: Guarding,
        embedding: Embedding,
        settlement: Settlement,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._vectors = vectors
        self._serving = serving
        self._admission = admission
        self._guarding = guarding
        self._embedding = embedding
        self._settlement = settlement
        self._clock = clock

    async def create(self, authorization: str | None, body: Body) -> Reply:
        """Make a store. Raises `ApiError`."""
        journey = await self._admission.begin(authorization, "store")
        async with self._settlement.of(journey):
            asked = parse_store(await body())
            request = StoreMake(
                model=asked.model or self._only_encoder(journey.key),
                input=asked.name or "vector store",
                name=asked.name,
                described=asked.metadata or {},
            )
            return await self.make(journey, request)

    async def listed(self, authorization: str | None, query: Mapping[str, str]) -> Reply:
        """The stores that the key may use. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        _may_read(key)
        mine = set(access.usable(self._settings, key))
        try:
            stores = [one for one in await self._vectors.all(key.team) if one.endpoint in mine]
            chosen, more = page(stores, query, lambda store: store.store_id)
            shown = [
                store_object(one, await self._vectors.files(key.team, one.store_id))
                for one in chosen
            ]
        except VectorsError as error:
            raise problem(error) from error
        return listing(shown, more)

    async def get(self, authorization: str | None, store_id: str) -> Reply:
        """One store. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        store = await self.of(key, store_id)
        return Reply(to_json(store_object(store, await self._files(key, store_id))), {})

    async def delete(self, authorization: str | None, store_id: str) -> Reply:
        """Remove a store with everything in it. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        await self.of(key, store_id)
        try:
            await self._vectors.delete(key.team, store_id)
        except VectorsError as error:
            raise problem(error) from error
        await self._note(key, "vector_store.delete", store_id, {})
        return deleted("vector_store", store_id)

    async def add(self, authorization: str | None, store_id: str, body: Body) -> Reply:
        """Put a file into a store, in place of one with the same id. Raises `ApiError`."""
        journey = await self._admission.begin(authorization, "file")
        async with self._settlement.of(journey):
            asked = parse_file(await body())
            store = await self.of(journey.key, store_id)
            endpoint = self._settings.endpoints[store.endpoint]
            served = self._embedding.served(endpoint, self._serving.get(store.endpoint, {}))
            file_id = asked.file_id or new_file_id()
            request = StoreFile(
                model=store.endpoint,
                input=_chunks(asked, served),
                store=store_id,
                file_id=file_id,
                filename=asked.filename or file_id,
                attributes=dict(asked.attributes or {}),
            )
            return await self.put(journey, request)

    async def files(
        self, authorization: str | None, store_id: str, query: Mapping[str, str]
    ) -> Reply:
        """The files of a store. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        await self.of(key, store_id)
        files = await self._files(key, store_id)
        chosen, more = page(files, query, lambda file: file.file_id)
        return listing([file_object(store_id, one) for one in chosen], more)

    async def file(self, authorization: str | None, store_id: str, file_id: str) -> Reply:
        """One file of a store. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        await self.of(key, store_id)
        for one in await self._files(key, store_id):
            if one.file_id == file_id:
                return Reply(to_json(file_object(store_id, one)), {})
        raise no_file(store_id, file_id)

    async def remove(self, authorization: str | None, store_id: str, file_id: str) -> Reply:
        """Take a file out of a store. Raises `ApiError`."""
        key = await self._admission.key(authorization)
        await self.of(key, store_id)
        if not is_file_id(file_id):
            raise no_file(store_id, file_id)
        try:
            update = await self._vectors.remove(key.team, store_id, file_id)
        except VectorsError as error:
            raise problem(error) from error
        if not update.removed:
            raise no_file(store_id, file_id)
        await self._note(key, "vector_store.remove", store_id, {"file_id": file_id})
        return deleted("vector_store.file", file_id)

    async def of(self, key: ApiKey, store_id: str) -> Store:
        """A store of the key's team and endpoints. Raises `ApiError` 403, 404, 503."""
        _may_read(key)
        try:
            store = await self._vectors.get(key.team, store_id)
        except VectorsError as error:
            raise problem(error) from error
        if store.endpoint not in access.usable(self._settings, key):
            raise problem(UnknownStore(f"there is no vector store '{store_id}' for this key"))
        return store

    async def make(self, journey: Journey, request: StoreMake, approved: bool = False) -> Reply:
        """Make a store, and settle. Raises `ApiError`."""
        call = self._admission.permitted(journey, request, "embed", approved)
        call = await self._guarding.look(journey, call)
        self._admission.count(journey, tokens=expected_tokens(call.request))
        # Its dimensions are not known before, and an encoder that does not answer makes no store.
        served = self._embedding.served(call.endpoint, call.served)
        embedded = await self._embedding.vectors(journey, call, served)
        store = Store(
            store_id=new_store_id(),
            name=call.request.texts[0] if request.name else "",
            endpoint=call.name,
            embedder=served.version,
            dimensions=int(embedded.vectors.shape[1]),
            created_at=int(self._clock.now().timestamp()),
            metadata=request.described,
        )
        try:
            await self._vectors.create(journey.key.team, store)
        except VectorsError as error:
            raise problem(error) from error
        journey.reasons.append(f"made {store.store_id}")
        journey.embedded(served, embedded.tokens, embedded.computed)
        await self._settlement.ok(journey)
        return Reply(to_json(store_object(store, ())), journey.headers())

    async def put(self, journey: Journey, request: StoreFile, approved: bool = False) -> Reply:
        """Embed and keep a file, and settle. Raises `ApiError`."""
        call = self._admission.permitted(journey, request, "embed", approved)
        store = await self.of(journey.key, request.store)
        call = await self._guarding.look(journey, call)
        served = self._embedding.served(call.endpoint, call.served)
        check_embedder(store, served)
        self._admission.count(journey, tokens=expected_tokens(call.request))
        embedded = await self._embedding.vectors(journey, call, served)
        texts = call.request.texts
        file = File(
            file_id=request.file_id,
            filename=request.filename,
            attributes=request.attributes,
            created_at=int(self._clock.now().timestamp()),
        )
        team = journey.key.team
        try:
            await self._vectors.put(team, store.store_id, file, texts, embedded.vectors)
        except VectorsError as error:
            raise problem(error) from error
        journey.reasons.append(f"{len(texts)} chunks of {file.file_id} in {store.store_id}")
        journey.embedded(served, embedded.tokens, embedded.computed)
        await self._settlement.ok(journey)
        kept = Kept(
            file_id=file.file_id,
            filename=file.filename,
            attributes=file.attributes,
            created_at=file.created_at,
            chunks=len(texts),
            characters=sum(map(len, texts)),
        )
        return Reply(to_json(file_object(store.store_id, kept)), journey.headers())

    def _only_encoder(self, key: ApiKey) -> str:
        """The one endpoint that can embed for the key. Raises `ApiError` 400."""
        names = [
            name
            for name in access.usable(self._settings, key)
            if self._settings.endpoints[name].task == "embed"
        ]
        if len(names) == 1:
            return names[0]
        choices = ", ".join(names) or "none, since no endpoint has `task: embed`"
        raise ApiError(
            400,
            "missing_required_parameter",
            f"`model` must name the endpoint that makes the embeddings; this key has: {choices}",
            param="model",
        )

    async def _files(self, key: ApiKey, store_id: str) -> list[Kept]:
        try:
            return await self._vectors.files(key.team, store_id)
        except VectorsError as error:
            raise problem(error) from error

    async def _note(self, key: ApiKey, action: str, store_id: str, detail: dict[str, Any]) -> None:
        """Put what is no request of a model into the audit log. Raises `LedgerError`."""
        event = audit.Event(
            created_at=self._clock.now(),
            actor=key.key_id,
            action=action,
            subject=store_id,
            detail={"team": key.team, **detail},
        )

        def write() -> None:
            with self._ledger.write() as connection:
                audit.seal(connection, [event])

        await asyncio.to_thread(write)


def check_embedder(store: Store, served: Served) -> None:
    """Raise `ApiError` 409 when the store was embedded by another encoder than `served`."""
    if store.embedder != served.version:
        raise ApiError(
            409,
            "embedder_changed",
            f"'{store.store_id}' was embedded by version '{store.embedder}', and "
            f"'{store.endpoint}' has '{served.version}' now; make a new store and add its files",
        )


def _may_read(key: ApiKey) -> None:
    if "inference" not in key.roles:
        raise ApiError(
            403,
            "role_missing",
            "this key has not the role 'inference', so it may not use vector stores; "
            "`factory keys create --role inference` makes one that may",
        )


def _chunks(asked: FileBody, served: Served) -> list[str]:
    """The chunks of a file, each short enough for the encoder. Raises `ApiError` 400."""
    most = served.max_model_len
    if asked.chunks is not None:
        for index, chunk in enumerate(asked.chunks):
            if (tokens := estimate_tokens(len(chunk))) > most:
                raise _too_long(f"chunks[{index}]", f"about {tokens} tokens", most)
        return asked.chunks
    if isinstance(asked.chunking_strategy, ByLength):
        lengths = asked.chunking_strategy.static
        size, overlap = lengths.max_chunk_size_tokens, lengths.chunk_overlap_tokens
        if size > most:
            raise _too_long("chunking_strategy.static.max_chunk_size_tokens", f"{size}", most)
    else:
        # A quarter is left for texts with more tokens than the rule of thumb says.
        size = max(most * 3 // 4, 1)
        overlap = size // 5
    text = asked.text or ""
    found = chunked(text, size * CHARACTERS_PER_TOKEN, overlap * CHARACTERS_PER_TOKEN)
    if len(found) > MOST_INPUTS:
        raise ApiError(
            400,
            "invalid_value",
            f"text: it makes {len(found)} chunks, and a file has {MOST_INPUTS} at most; "
            "split it into several files",
            param="text",
        )
    return found


def _too_long(param: str, what: str, most: int) -> ApiError:
    message = f"{param}: {what}, and the encoder reads {most} tokens of a text at most"
    return ApiError(400, "invalid_value", message, param=param)

"""What a vector store holds, as plain values.

store = Store(store_id=new_store_id(), name="handbook", endpoint="search", embedder="minilm@1",
              dimensions=384, created_at=1764000000, metadata={})
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

Attributes = Mapping[str, str | float | bool]
"""What a file is said to be, by its owner."""

STORE_ID = r"^vs_[0-9a-f]{32}$"
"""An id is part of a path, so it is nothing else."""
FILE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""An id is part of a condition in SQL, so it needs no quoting."""


def new_store_id() -> str:
    """A fresh id of a store."""
    return f"vs_{uuid.uuid4().hex}"


def new_file_id() -> str:
    """A fresh id of a file whose owner gives it none."""
    return f"file-{uuid.uuid4().hex}"


def is_store_id(text: str) -> bool:
    """Whether a store can have that id."""
    return re.fullmatch(STORE_ID, text) is not None


def is_file_id(text: str) -> bool:
    """Whether a file can have that id."""
    return re.fullmatch(FILE_ID, text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What a store is made with. It does not change."""

    store_id: str
    name: str
    endpoint: str
    """Whose encoder makes its embeddings."""
    embedder: str
    """Version of that encoder; vectors of another one mean nothing here."""
    dimensions: int
    created_at: int
    """Unix time in seconds."""
    metadata: Mapping[str, str]

    def packed(self) -> bytes:
        """As JSON, to be kept with the store's table."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def unpacked(cls, raw: bytes) -> Store:
        """From `packed`. Raises `ValueError`."""
        try:
            return cls(**json.loads(raw))
        except TypeError as error:
            raise ValueError(f"this is no description of a store: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A text that is put into a store, in chunks."""

    file_id: str
    filename: str
    attributes: Attributes
    created_at: int
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(File):
    """A file in a store."""

    chunks: int
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A chunk near a question."""

    file: File
    seq: int
    """Place of the chunk in its file, from 0."""
    text: str
    score: float
    """Cosine of the angle to the question, at least 0."""


@dataclass(frozen=True, slots=True)
class Update:
    """What became of a change."""

    version: int
    """Of the store; higher after each change."""
    removed: int
    """Chunks that are not there any more."""


def usage(store: Store, files: Iterable[Kept]) -> int:
    """Bytes of the texts and vectors in a store, without what the format adds."""
    return sum(one.characters + one.chunks * store.dimensions * 4 for one in files)

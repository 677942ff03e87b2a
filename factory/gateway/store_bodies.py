"""The bodies of the vector store routes, and what becomes of them on their way to an encoder.

    asked = parse_search(b'{"query": "who pays postage?", "max_num_results": 3}')    # ApiError 400
    asked.filters.holds({"lang": "en"})

`StoreMake`, `StoreFile` and `StoreSearch` are embeddings requests that know their store. So the
same guard, rates, budgets and reviews hold for them as for every other request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.gateway.embedding_body import MOST_INPUTS, EmbeddingRequest
from factory.gateway.engine import Route
from factory.gateway.fields import Metadata, Parser, Strict
from factory.vectors import Attributes
from factory.vectors.store import FILE_ID

MOST_RESULTS = 50
"""Chunks in an answer."""
MOST_QUERIES = 16
"""Questions in one search."""
MOST_FILTERS = 32
"""Conditions that are joined by `and` or `or`."""

_Key = Annotated[str, Field(min_length=1, max_length=64)]
_Word = Annotated[str, Field(max_length=512)]
_Value = Annotated[_Word | float | bool, Field(union_mode="left_to_right")]
_Attributes = Annotated[dict[_Key, _Value], Field(max_length=16)]
_FileId = Annotated[str, Field(pattern=FILE_ID)]
_Text = Annotated[str, Field(min_length=1)]


class StoreBody(Strict):
    """A new vector store."""

    name: str = Field(default="", max_length=256)
    model: str | None = Field(default=None, min_length=1, max_length=256)
    """The endpoint whose encoder makes the embeddings; not needed where the key has only one."""
    metadata: Metadata | None = None


class Static(Strict):
    """How long chunks are."""

    max_chunk_size_tokens: int = Field(ge=10, le=4096)
    chunk_overlap_tokens: int = Field(ge=0, le=2048)

    @model_validator(mode="after")
    def _overlap_is_no_more_than_half(self) -> Static:
        if self.chunk_overlap_tokens * 2 > self.max_chunk_size_tokens:
            raise ValueError("chunk_overlap_tokens must not exceed half of max_chunk_size_tokens")
        return self


class Auto(Strict):
    """Chunks that fit the encoder."""

    type: Literal["auto"]


class ByLength(Strict):
    """Chunks of a given length, in tokens of four characters."""

    type: Literal["static"]
    static: Static


class FileBody(Strict):
    """A text for a vector store, whole or in chunks."""

    file_id: _FileId | None = None
    """Chosen by its owner; a file that has it already is replaced."""
    filename: str | None = Field(default=None, min_length=1, max_length=256)
    text: _Text | None = None
    """Cut into chunks by `chunking_strategy`."""
    chunks: Annotated[list[_Text], Field(min_length=1, max_length=MOST_INPUTS)] | None = None
    """Cut by its owner; each must fit the encoder."""
    attributes: _Attributes | None = None
    chunking_strategy: Annotated[Auto | ByLength, Field(discriminator="type")] | None = None

    @model_validator(mode="after")
    def _text_or_chunks(self) -> FileBody:
        if (self.text is None) == (self.chunks is None):
            raise ValueError("send either `text` or `chunks`")
        if self.chunks is not None and self.chunking_strategy is not None:
            raise ValueError("chunking_strategy is for `text`; `chunks` are cut already")
        if not (self.text or "".join(self.chunks or [])).strip():
            raise ValueError("there is nothing but white space to embed")
        return self


class Comparison(Strict):
    """A condition on one attribute. A file without it meets only `ne` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: _Key
    value: _Value | Annotated[list[_Word | float], Field(max_length=MOST_FILTERS)]

    @model_validator(mode="after")
    def _fits(self) -> Comparison:
        several = self.type in ("in", "nin")
        if several != isinstance(self.value, list):
            raise ValueError(f"'{self.type}' compares with {'a list' if several else 'one value'}")
        if self.type in ("gt", "gte", "lt", "lte") and not _is_number(self.value):
            raise ValueError(f"'{self.type}' compares numbers")
        return self

    def holds(self, attributes: Attributes) -> bool:
        """Whether a file with these attributes is wanted."""
        value, wanted = attributes.get(self.key), self.value
        match self.type:
            case "eq":
                return _same(value, wanted)
            case "ne":
                return not _same(value, wanted)
            case "in":
                return isinstance(wanted, list) and any(_same(value, one) for one in wanted)
            case "nin":
                return isinstance(wanted, list) and not any(_same(value, one) for one in wanted)
        if not (_is_number(value) and _is_number(wanted)):
            return False
        found, bound = float(value), float(wanted)  # type: ignore[arg-type]
        return {
            "gt": found > bound,
            "gte": found >= bound,
            "lt": found < bound,
            "lte": found <= bound,
        }[self.type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, wanted: Any) -> bool:
    """Equal, and both truth values or neither: in Python True is 1."""
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


class Group(Strict):
    """Conditions of which all, or at least one, must be met."""

    type: Literal["and", "or"]
    filters: Annotated[list[Comparison], Field(min_length=1, max_length=MOST_FILTERS)]

    def holds(self, attributes: Attributes) -> bool:
        """Whether a file with these attributes is wanted."""
        return _joined(self.type, [one.holds(attributes) for one in self.filters])


_Member = Annotated[Comparison | Group, Field(discriminator="type")]


class Groups(Strict):
    """Conditions and groups of them."""

    type: Literal["and", "or"]
    filters: Annotated[list[_Member], Field(min_length=1, max_length=MOST_FILTERS)]

    def holds(self, attributes: Attributes) -> bool:
        """Whether a file with these attributes is wanted."""
        return _joined(self.type, [one.holds(attributes) for one in self.filters])


def _joined(how: Literal["and", "or"], held: Sequence[bool]) -> bool:
    return all(held) if how == "and" else any(held)


Filter = Annotated[Comparison | Groups, Field(discriminator="type")]


class RankingOptions(Strict):
    """What is near enough."""

    ranker: Literal["auto", "none"] | None = None
    """Chunks are ranked by the cosine of their embeddings, whichever is named."""
    score_threshold: float | None = Field(default=None, ge=0, le=1)


class SearchBody(Strict):
    """A question to a vector store."""

    query: _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_QUERIES)]
    max_num_results: int | None = Field(default=None, ge=1, le=MOST_RESULTS)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: Literal[False] | None = None

    @property
    def queries(self) -> list[str]:
        """The questions; a chunk is as near as it is to the nearest of them."""
        return [self.query] if isinstance(self.query, str) else self.query


parse_store = Parser(StoreBody).parse
parse_file = Parser(FileBody).parse
parse_search = Parser(SearchBody).parse


class StoreMake(EmbeddingRequest):
    """A store to be made; its name is embedded, which shows that its encoder works."""

    route: ClassVar[Route] = "store"

    name: str = ""
    described: dict[str, str] = Field(default_factory=dict)
    """The store's own metadata."""


class StoreFile(EmbeddingRequest):
    """Chunks on their way into a store."""

    route: ClassVar[Route] = "file"

    store: str
    file_id: str
    filename: str
    attributes: dict[str, _Value] = Field(default_factory=dict)


class StoreSearch(EmbeddingRequest):
    """Questions on their way to a store."""

    route: ClassVar[Route] = "search"

    store: str
    most: int
    filters: Filter | None = None
    threshold: float = 0.0

"""The embeddings route: its request, and its reply from the vectors of an engine.

asked = parse_embeddings(b'{"model": "search", "input": ["one", "two"]}')    # ApiError 400
vectors, tokens = await engine.embed(asked.texts)
embeddings_reply(asked, "minilm", vectors, sum(tokens))    # b'{"object": "list" ...'
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError, to_json

from factory.gateway.engine import Body, Route, Vectors
from factory.gateway.errors import ApiError
from factory.gateway.fields import Parser, Strict, digest

MOST_INPUTS = 2048
"""Texts in a request."""


def _texts_only(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise PydanticCustomError(
            "unsupported_input",
            "token arrays are not supported, since each model has its own tokens; send text",
        )
    return value


_Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(Strict):
    """OpenAI's `embeddings` request, for texts."""

    route: ClassVar[Route] = "embeddings"
    stream: ClassVar[bool] = False
    include_usage: ClassVar[bool] = False
    shows_logprobs: ClassVar[bool] = False
    uses_tools: ClassVar[bool] = False
    wants_json: ClassVar[bool] = False
    json_schema: ClassVar[dict[str, Any] | None] = None
    metadata: ClassVar[dict[str, str] | None] = None
    repeatable: ClassVar[bool] = True
    last_question: ClassVar[str | None] = None
    limit: ClassVar[int] = 0
    choices: ClassVar[int] = 1

    model: str = Field(min_length=1, max_length=256)
    input: Annotated[
        _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_INPUTS)],
        BeforeValidator(_texts_only),
    ]
    dimensions: int | None = Field(default=None, ge=1, le=65_536)
    """Leading dimensions to keep; the shortened vectors are normalized again."""
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = Field(default=None, max_length=512)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that the model would read."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)

    def with_texts(self, texts: Sequence[str]) -> EmbeddingRequest:
        """The same request with other texts. Raises `ValueError` for more or fewer of them."""
        if len(texts) != len(self.texts):
            raise ValueError(f"the request has {len(self.texts)} texts, not {len(texts)}")
        return self.model_copy(update={"input": list(texts)})

    @property
    def turns(self) -> list[dict[str, str]]:
        """The texts as if a user had said them, to be counted."""
        return [{"role": "user", "content": text} for text in self.texts]

    def canonical(self) -> bytes:
        """The same bytes for every request that means the same."""
        rest = self.model_dump_json(exclude={"input", "user"}, exclude_none=True)
        return b"embeddings" + rest.encode() + to_json(self.texts)

    def context_hash(self) -> bytes:
        """16 bytes for the whole request."""
        return digest(b"embeddings", self.canonical())

    def engine_body(self) -> Body:
        """The request without what the gateway answers for."""
        return {"input": list(self.texts)}


_PARSER = Parser(EmbeddingRequest)


def parse_embeddings(raw: bytes) -> EmbeddingRequest:
    """The checked request. Raises `ApiError` 400 that names the position or the field."""
    return _PARSER.parse(raw)


def shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The leading `dimensions` of each vector, normalized to length one again.

    This is OpenAI's meaning of the field. It keeps most of the meaning only for models that put the
    weightiest dimensions first, as static embedders after a PCA do.
    Raises `ApiError` 400 when the vectors have fewer.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise ApiError(
            400,
            "invalid_value",
            f"dimensions: this model's embeddings have {vectors.shape[1]} dimensions, "
            f"not {dimensions}",
            param="dimensions",
        )
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    unit: Vectors = (short / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def embeddings_reply(
    asked: EmbeddingRequest, label: str, vectors: Vectors, prompt_tokens: int
) -> bytes:
    """The body of the reply, from float32 vectors of shape (texts, dimensions).

    Raises `ApiError` 400 when more dimensions are wanted than there are.
    """
    vectors = shortened(vectors, asked.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(asked, vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return to_json({"object": "list", "data": data, "model": label, "usage": usage})


def _encoded(asked: EmbeddingRequest, vector: Any) -> str | list[float]:
    if asked.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    values: list[float] = vector.tolist()
    return values

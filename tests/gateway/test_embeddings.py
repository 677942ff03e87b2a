"""The embeddings route: its request, its reply, and a provider behind it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from provider_server import Play, Provider
from pydantic import SecretStr

from factory.gateway.embedding_body import (
    MOST_INPUTS,
    embeddings_reply,
    parse_embeddings,
    shortened,
)
from factory.gateway.engine import EngineError
from factory.gateway.errors import ApiError
from factory.gateway.provider import OpenAIEngine

VECTORS = np.array([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]], dtype=np.float32)


def request(**fields):
    return parse_embeddings(json.dumps({"model": "m", "input": ["a", "b"], **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"input": [1, 2]}, "unsupported_input", "token arrays are not supported"),
        ({"input": [[1], [2]]}, "unsupported_input", "token arrays are not supported"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ["a"] * (MOST_INPUTS + 1)}, "invalid_value", "input"),
        ({"dimensions": 0}, "invalid_value", "dimensions"),
        ({"encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"stream": True}, "unsupported_parameter", "stream"),
    ],
)
def test_what_is_not_done_is_refused_by_name(fields, code, words):
    with pytest.raises(ApiError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert words in caught.value.message


def test_one_text_is_a_list_of_one():
    assert request(input="a").texts == ("a",)
    assert request(input="a").canonical() == request(input=["a"], user="u").canonical()
    assert request(input="ab").canonical() != request(input=["a", "b"]).canonical()
    assert request().with_texts(["c", "d"]).texts == ("c", "d")


def test_the_reply_is_openais_in_both_encodings():
    plain = json.loads(embeddings_reply(request(), "minilm", VECTORS, 9))
    assert CreateEmbeddingResponse.model_validate(plain, strict=True).object == "list"
    assert plain["model"] == "minilm"
    assert plain["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [row["index"] for row in plain["data"]] == [0, 1]
    assert np.array([row["embedding"] for row in plain["data"]], np.float32).tolist() == (
        VECTORS.tolist()
    )
    packed = request(encoding_format="base64")
    for row, vector in zip(
        json.loads(embeddings_reply(packed, "minilm", VECTORS, 9))["data"], VECTORS, strict=True
    ):
        bits = base64.b64decode(row["embedding"])
        assert np.frombuffer(bits, "<f4").tolist() == vector.tolist()


@settings(deadline=None)
@given(st.integers(1, 3))
def test_fewer_dimensions_are_the_leading_ones_at_length_one(dimensions):
    short = shortened(VECTORS, dimensions)
    assert short.shape == (2, dimensions)
    assert short.dtype == np.float32
    lengths = np.linalg.norm(short, axis=1)
    assert np.allclose(lengths[lengths > 0], 1)


def test_more_dimensions_than_there_are_is_refused():
    with pytest.raises(ApiError, match="have 3 dimensions, not 4"):
        embeddings_reply(request(dimensions=4), "minilm", VECTORS, 9)


async def test_a_provider_embeds_and_its_total_is_kept():
    provider = Provider()
    engine = OpenAIEngine(provider.base_url, "embedder", SecretStr("none"))
    vectors, tokens = await engine.embed(["one two three", "one", "a b"])
    assert vectors.tolist() == [[13, 1], [3, 1], [3, 1]]
    assert vectors.dtype == np.float32
    assert sum(tokens) == 6
    assert provider.bodies[0]["model"] == "embedder"
    provider.script.append(Play(garbage=True))
    with pytest.raises(EngineError) as caught:
        await engine.embed(["one"])
    assert caught.value.status == 502
    provider.script.append(Play(status=429))
    with pytest.raises(EngineError) as caught:
        await engine.embed(["one"])
    assert caught.value.retryable
    await engine.close()
    await provider.stop()

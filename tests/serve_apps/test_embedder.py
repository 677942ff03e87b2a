"""The embedder: batches bounded in tokens, and each caller gets the vectors of its own texts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.embedder import BATCH_TOKENS, BatchingEncoder, pieces, size_in_tokens


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve.batch` asks the replica it runs in for its name and this one figure."""
    config = SimpleNamespace(max_ongoing_requests=BATCH_TOKENS)
    names = {"app_name": "app", "deployment": "embedder", "replica_tag": "one"}
    context = SimpleNamespace(_deployment_config=config, **names)
    monkeypatch.setattr("ray.serve.context._INTERNAL_REPLICA_CONTEXT", context)


class Scripted:
    """A text's vector is its length; a word is a token. Notes what it is asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(texts))
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        self.threads.add(threading.current_thread().name)
        return [len(text.split()) for text in texts]


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 50))
def test_pieces_keep_the_order_and_the_limit(tokens: list[int], limit: int) -> None:
    texts = [f"{place}" for place in range(len(tokens))]
    cut = pieces(texts, tokens, limit)

    assert [text for piece in cut for text in piece.texts] == texts
    assert all(size_in_tokens([piece]) <= limit for piece in cut)
    assert all(piece.texts for piece in cut)


@pytest.mark.usefixtures("replica")
async def test_callers_share_batches_and_get_their_own_vectors() -> None:
    encoder = Scripted()
    batching = BatchingEncoder(encoder)
    replies = await asyncio.gather(*(batching.embed(["x" * n, "yy"]) for n in range(1, 21)))

    for n, (vectors, tokens) in enumerate(replies, start=1):
        assert vectors.tolist() == [[n, 1], [2, 1]]
        assert vectors.dtype == np.float32
        assert tokens == [1, 1]
    assert len(encoder.batches) < len(replies), "waiting requests are encoded together"
    assert len(encoder.threads) == 1
    found = batching.signals()
    assert (found.requests_total, found.prompt_tokens_total) == (20, 40)
    assert (found.steps_total, found.running) == (len(encoder.batches), 0)
    assert found.memory_bytes > 0
    assert 0 < found.ttft_p50_s <= found.ttft_p95_s


@pytest.mark.usefixtures("replica")
async def test_a_batch_is_bounded_in_tokens_and_a_long_request_is_cut() -> None:
    encoder = Scripted()
    long = "word " * (BATCH_TOKENS // 2)
    vectors, tokens = await BatchingEncoder(encoder).embed([long, long, long, "end"])

    assert vectors[:, 0].tolist() == [len(long)] * 3 + [3]
    assert tokens == [BATCH_TOKENS // 2] * 3 + [1]
    assert all(sum(encoder.count_tokens(batch)) <= BATCH_TOKENS for batch in encoder.batches)


@pytest.mark.usefixtures("replica")
async def test_a_text_longer_than_a_batch_is_still_encoded() -> None:
    vectors, _ = await BatchingEncoder(Scripted()).embed(["word " * (BATCH_TOKENS + 5)])

    assert vectors.shape == (1, 2)

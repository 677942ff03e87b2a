from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.embedding import EmbeddingError, Encoder
from factory.embedding.encoder import MAX_TOKENS, batches


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.load(encoder_folder)


TEXTS = ["how do i reset my password", "card", "where is the parcel please", "one two three"]


def test_batching_and_padding_change_nothing(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    assert together.dtype == np.float32
    assert together.shape == (4, encoder.dimensions) == (4, 32)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    small = encoder.encode(TEXTS, batch_tokens=8)
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(together, small, atol=1e-5)


def test_it_is_the_mean_of_the_last_states(encoder: Encoder, encoder_folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    read = AutoTokenizer.from_pretrained(encoder_folder)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(encoder_folder).eval()(**read).last_hidden_state[0]
    mean = states.mean(0).numpy()
    assert np.allclose(encoder.encode([TEXTS[0]])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_tokens_are_counted_as_read_and_the_rest_is_cut_off(encoder: Encoder) -> None:
    long = "card " * 1000
    assert encoder.count_tokens(["card", long, ""]) == [3, MAX_TOKENS, 2]
    assert np.allclose(encoder.encode([long]), encoder.encode(["card " * 254]), atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.count_tokens([]) == []


def test_a_folder_that_is_no_encoder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="cannot be read as an encoder"):
        Encoder.load(tmp_path)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_batches_hold_every_text_once_within_their_bound(lengths: list[int], bound: int) -> None:
    made = list(batches(lengths, bound))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= bound

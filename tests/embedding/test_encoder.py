from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.embedding import EmbeddingError, Encoder
from factory.embedding.encoder import MAX_TOKENS, batches, lower


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


@pytest.fixture(scope="module")
def language_model(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads with the tiny encoder's vocabulary."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("language-model")
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=8,
        num_attention_heads=2,
        intermediate_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_lower_layers_of_a_language_model_read_too(language_model: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    assert lower(language_model) == 2
    encoder = Encoder.load(language_model, 2)
    read = AutoTokenizer.from_pretrained(language_model)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        model = AutoModel.from_pretrained(language_model).eval()
        states = model(**read, output_hidden_states=True).hidden_states[2][0]
    mean = states.mean(0).numpy()
    assert np.allclose(encoder.encode([TEXTS[0]])[0], mean / np.linalg.norm(mean), atol=1e-5)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_of_a_long_text_lower_layers_read_both_ends(language_model: Path) -> None:
    encoder = Encoder.load(language_model, 1)
    ends = ["card " * 300 + "parcel " * 300, "card " * 5000 + "parcel " * 300]
    first, second = encoder.encode(ends)
    assert encoder.count_tokens(ends) == [MAX_TOKENS, MAX_TOKENS]
    assert np.allclose(first, second, atol=1e-5)
    assert not np.allclose(first, encoder.encode(["card " * 600])[0], atol=1e-2)
    assert np.isfinite(encoder.encode([""])).all()


def test_more_layers_than_there_are_is_one_sentence(language_model: Path, tmp_path: Path) -> None:
    for layers in (0, 9):
        with pytest.raises(EmbeddingError, match="has 8 layers"):
            Encoder.load(language_model, layers)
    with pytest.raises(EmbeddingError, match="how many layers"):
        lower(tmp_path)


def test_a_folder_that_is_no_encoder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="cannot be read as an encoder"):
        Encoder.load(tmp_path)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_batches_hold_every_text_once_within_their_bound(lengths: list[int], bound: int) -> None:
    made = list(batches(lengths, bound))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= bound

"""A tiny real encoder (BERT with a small vocabulary) in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.catalog.objects import Object, ObjectStore
from factory.catalog.pull import pull
from factory.config import Settings, parse

WORDS = [
    *("how", "do", "i", "reset", "my", "password", "card", "where", "is", "the", "parcel"),
    *("order", "cancel", "can", "a", "new", "account", "open", "what", "when", "will", "it"),
    *("arrive", "please", "help", "me", "with", "this", "one", "two", "three", "four", "five"),
]


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS), "##s", "?"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(encoder_folder: Path, tmp_path: Path) -> Settings:
    model = {
        "source": {"path": str(encoder_folder)},
        "engine": "encoder",
        "tier": 1,
        "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    }
    text = json.dumps({"models": {"tiny": model}, "teams": {}, "endpoints": {}})
    return parse(text, "test.yaml", tmp_path, {})


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def encoder(settings: Settings, store: ObjectStore) -> Object:
    return pull(settings, "tiny", store)

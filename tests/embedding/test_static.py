from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.embedding import EmbeddingError, StaticEmbedder, installed
from factory.embedding.distill import distill, find

DIMENSIONS = 16


@pytest.fixture
def made(encoder: Object, store: ObjectStore) -> Object:
    return distill(encoder, store, dimensions=DIMENSIONS)


def test_it_encodes_to_unit_length_like_model2vec(made: Object) -> None:
    from model2vec import StaticModel

    embedder = StaticEmbedder.load(made.path)
    texts = ["how do i reset my password?", "where is the parcel", "WHERE is the PARCEL", "card"]
    vectors = embedder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, embedder.dimensions) == (4, DIMENSIONS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    reference = StaticModel.from_pretrained(made.path).encode(texts).astype(np.float32)
    assert np.allclose(vectors, reference, atol=2e-3)
    assert np.array_equal(vectors[1], vectors[2])
    assert np.array_equal(embedder.encode_one(texts[0]), vectors[0])


def test_no_text_and_unknown_text(made: Object) -> None:
    embedder = StaticEmbedder.load(made.path)
    assert embedder.encode([]).shape == (0, DIMENSIONS)
    assert not embedder.encode(["", "字"]).any()


def test_distilling_is_done_once_and_gives_the_same_bytes(
    made: Object, encoder: Object, store: ObjectStore, tmp_path: Path
) -> None:
    said: list[str] = []
    assert distill(encoder, store, said.append, dimensions=DIMENSIONS) == made
    assert said == []
    assert find(encoder, store, DIMENSIONS) == made
    assert find(encoder, store, 8) is None
    again = distill(encoder, ObjectStore(tmp_path / "other"), dimensions=DIMENSIONS)
    assert again.hash == made.hash
    assert made.meta["encoder_hash"] == encoder.hash
    assert str(encoder.path) not in (made.path / "config.json").read_text()
    assert StaticEmbedder.load(again.path).hash == StaticEmbedder.load(made.path).hash


def test_other_dimensions_are_another_embedder(
    made: Object, encoder: Object, store: ObjectStore
) -> None:
    other = StaticEmbedder.load(distill(encoder, store, dimensions=8).path)
    assert other.dimensions == 8
    assert other.hash != StaticEmbedder.load(made.path).hash


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_or_damaged_file_is_one_sentence(made: Object, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made.path, tmp_path / "copy"))
    (folder / name).write_bytes(b"{")
    with pytest.raises(EmbeddingError, match="cannot be read as a static embedder"):
        StaticEmbedder.load(folder)
    (folder / name).unlink()
    with pytest.raises(EmbeddingError, match=f"has no {name}"):
        StaticEmbedder.load(folder)


def test_a_folder_that_is_no_encoder_is_one_sentence(store: ObjectStore, tmp_path: Path) -> None:
    item = store.put("models", "none", lambda folder: (folder / "x.json").write_text("{}") and None)
    with pytest.raises(EmbeddingError, match="cannot be distilled"):
        distill(item, store)
    assert store.list("embedders") == []


def test_the_installation_takes_the_encoder_of_its_catalog(
    settings: Settings, store: ObjectStore
) -> None:
    assert installed.find(settings, store) is None
    bare = settings.model_copy(update={"models": {}})
    with pytest.raises(EmbeddingError, match="no model with engine 'encoder'"):
        installed.make(bare, store)
    assert installed.encoder_name(settings) == "tiny"

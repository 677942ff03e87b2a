"""The harness: a suite, an answerer, and what came out, measured once.

    judged = judge(suite, TransformersAnswerer(model), store, price=price)
    judged.results.summary.accuracy, judged.item.path, judged.reused

The same suite, weights and settings are not measured twice: the saved results are found again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from factory.catalog.objects import Object, ObjectStore
from factory.config import Price
from factory.evaluation.answerer import Answer, Answerer, Progress, PromptTooLong
from factory.evaluation.results import (
    KIND,
    CaseResult,
    EvaluationError,
    Identity,
    Results,
    Summary,
    cost_nusd,
    key,
    load,
    object_name,
    percentile,
    save,
    wilson,
)
from factory.evaluation.scorers import SCORERS, score
from factory.evaluation.suite import Case, Suite


@dataclass(frozen=True, slots=True)
class Judged:
    """Results, the object that keeps them, and whether they were there before."""

    results: Results
    item: Object
    reused: bool


def _silent(_: int) -> None:
    return None


def judge(
    suite: Suite,
    answerer: Answerer,
    store: ObjectStore,
    *,
    price: Price | None = None,
    progress: Progress = _silent,
    force: bool = False,
    before: Callable[[], None] | None = None,
) -> Judged:
    """Find the saved results of this suite and answerer, or run and save them.

    Results from an endpoint whose weights are out of sight are never reused, nor any when `force`
    is set. `before` is called once if something has to be computed. Raises `EvaluationError`.
    """
    if not force and (found := found_before(suite, answerer.identity, store)):
        results = load(found)
        summary = results.summary.model_copy(update={"cost_nusd": cost_nusd(results.cases, price)})
        return Judged(Results(summary, results.cases), found, reused=True)
    if before is not None:
        before()
    results = run(suite, answerer, price=price, progress=progress)
    return Judged(results, save(store, results), reused=False)


def found_before(suite: Suite, identity: Identity, store: ObjectStore) -> Object | None:
    """The saved results of this suite and model; None where its weights are out of sight."""
    if not identity.model_hash:
        return None
    return store.find(KIND, object_name(suite.name, key(suite.hash, identity)))


def run(
    suite: Suite,
    answerer: Answerer,
    *,
    price: Price | None = None,
    progress: Progress = _silent,
) -> Results:
    """Answer and score every case; nothing is saved. Raises `EvaluationError`."""
    identity = answerer.identity
    try:
        answers = answerer.answer(
            [case.chat for case in suite.cases], suite.header.max_new_tokens, progress
        )
    except PromptTooLong as error:
        raise EvaluationError(
            f"case '{suite.cases[error.index].id}' of suite '{suite.name}' has {error.tokens} "
            f"tokens where {error.limit} fit into the model's context; shorten or remove the case"
        ) from error
    if all(answer.error for answer in answers):
        raise EvaluationError(
            f"no case of suite '{suite.name}' was answered; the first error: {answers[0].error}"
        )
    cases = tuple(
        _result(suite, case, answer) for case, answer in zip(suite.cases, answers, strict=True)
    )
    right = sum(case.score for case in cases)
    low, high = wilson(right, len(cases))
    sample = suite.header.sample
    summary = Summary(
        suite_name=suite.name,
        suite_version=suite.version,
        suite_hash=suite.hash,
        cases=len(cases),
        scorer=suite.scorer,
        answered_by=identity,
        seeds={} if sample is None else {"sample": sample.seed},
        accuracy=right / len(cases),
        low=low,
        high=high,
        secondary={
            name: sum(case.scores[name] for case in cases) / len(cases)
            for name in cases[0].scores
            if name != suite.scorer
        },
        errors=sum(case.error is not None for case in cases),
        p50_ms=percentile([case.latency_ms for case in cases], 0.5),
        p95_ms=percentile([case.latency_ms for case in cases], 0.95),
        prompt_tokens=sum(case.prompt_tokens for case in cases),
        completion_tokens=sum(case.completion_tokens for case in cases),
        cost_nusd=cost_nusd(cases, price),
    )
    return Results(summary, cases)


def _result(suite: Suite, case: Case, answer: Answer) -> CaseResult:
    scores = {
        str(name): answer.error is None and score(name, answer.text, case.expected, suite.labels)
        for name in SCORERS
        if suite.labels or name != "mentions"
    }
    return CaseResult(
        id=case.id,
        expected=case.expected,
        answer=answer.text,
        score=scores[suite.scorer],
        scores=scores,
        latency_ms=answer.latency_ms,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        confidence=answer.confidence,
        error=answer.error,
    )

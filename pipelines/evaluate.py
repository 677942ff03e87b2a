"""Judge a candidate against its base and the champion, register it, and promote it if asked.

    python -m pipelines.evaluate --name helpdesk                        # the newest stored adapter
    python -m pipelines.evaluate --name helpdesk --adapter 3f0a… --promote
    python -m pipelines.evaluate --name helpdesk-student --promote      # whole weights as well
    python -m pipelines.evaluate --dry-run                              # who, tokens, time, dollars
    ray job submit --working-dir . -- python -m pipelines.evaluate --name helpdesk --limit 240

A candidate is an adapter, or whole weights: a student, a quantized or fully tuned model. What was
judged before on the same suite is found again, not computed. A table goes to standard
error, one JSON object to standard output as the last line. Exit code 0 when all is done, 3 when
the gate refuses, 1 with one sentence on standard error when something is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from factory import config
from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.compare import compare
from factory.evaluation.harness import Judged, found_before, judge
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.ledger.store import open_ledger
from factory.registry.versions import WEIGHTS, Registry
from factory.training import estimate
from factory.training.config import TrainConfig
from pipelines.candidate import answerer_of, find_case, lineage_of
from pipelines.closing import closed, gate_code
from pipelines.finetune import to_stderr
from pipelines.verdict import Verdict

WHOLE = TrainConfig(use_peft=False, full_tuning_reason="a model is looked at, not trained")

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]
"""Told who is judged next and on how many cases; returns what is told of each case done."""


def evaluate(
    settings: Settings,
    registry: Registry,
    name: str,
    *,
    adapter: str | None = None,
    suite: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    promote: bool = False,
    force: bool = False,
    progress: Progress = lambda who, cases: lambda done: None,
    env: Mapping[str, str] = os.environ,
) -> Verdict:
    """Judge base, champion and candidate on one suite, register the candidate, ask the gate.

    Raises `EvaluationError`, `SuiteError`, `CatalogError` or `RegistryError`.
    """
    store = ObjectStore(settings.objects)
    questions, tuned, model, base = find_case(
        settings, store, name, adapter=adapter, suite=suite, limit=limit, seed=seed
    )
    lineage = lineage_of(tuned, model, base, questions, env)

    def judged(who: str, weights: Object, catalog: str, wearing: Path | None = None) -> Judged:
        entry = settings.models.get(catalog)
        answerer = answerer_of(settings, weights, catalog, wearing, batch_size)
        advance = progress(who, len(questions.cases))
        found = judge(
            questions,
            answerer,
            store,
            price=entry.price if entry else None,
            progress=advance,
            force=force,
        )
        if found.reused:
            advance(len(questions.cases))
        return found

    bare = judged("base", base, model)
    whole = tuned.kind == WEIGHTS
    candidate = judged("candidate", tuned if whole else base, model, None if whole else tuned.path)
    run_id = tuned.meta.get("run_id")
    version = registry.register(name, tuned, run_id, lineage, candidate.item, bare.item)
    best: Judged | None = None
    champion = registry.champion(name)
    if champion is not None and champion.version != version:
        origin = champion.lineage
        weights = store.get(pull.KIND, origin.base_model, origin.base_hash)
        if champion.whole:
            made = registry.weights(name, champion.version)
            best = judged("champion", made, origin.base_model)
        else:
            best = judged("champion", weights, origin.base_model, champion.path)
        below = bare
        if weights.hash != base.hash:
            below = judged("champion's base", weights, origin.base_model)
        registry.add_evaluation(name, champion.version, best.item, below.item)
    return Verdict(
        name=name,
        version=version,
        base=bare,
        candidate=candidate,
        champion=best,
        champion_version=champion.version if champion else None,
        against_base=compare(bare.results, candidate.results),
        against_champion=compare(best.results, candidate.results) if best else None,
        decision=registry.promote(name, version) if promote else None,
    )


def dry_run(
    settings: Settings,
    registry: Registry,
    name: str,
    *,
    adapter: str | None = None,
    suite: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Say who would be judged, on how many tokens, how long and for what; judge nobody.

    Beginnings that all cases share are counted in each. Raises as `evaluate` does.
    """
    from transformers import AutoTokenizer

    store = ObjectStore(settings.objects)
    questions, tuned, model, base = find_case(
        settings, store, name, adapter=adapter, suite=suite, limit=limit, seed=seed
    )
    whole = tuned.kind == WEIGHTS

    def answers(weights: Object, catalog: str, wearing: Path | None) -> TransformersAnswerer:
        return answerer_of(settings, weights, catalog, wearing, batch_size)

    todo = [
        ("base", answers(base, model, None)),
        ("candidate", answers(tuned, model, None) if whole else answers(base, model, tuned.path)),
    ]
    champion = registry.champion(name)
    if champion is not None and champion.adapter_hash != tuned.hash:
        catalog = champion.lineage.base_model
        if champion.whole:
            best = answers(registry.weights(name, champion.version), catalog, None)
        else:
            under = store.get(pull.KIND, catalog, champion.lineage.base_hash)
            best = answers(under, catalog, champion.path)
        todo.append(("champion", best))
    known = {
        who: not force and found_before(questions, one.identity, store) is not None
        for who, one in todo
    }
    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    asked_tokens = sum(
        len(tokenizer.apply_chat_template(case.chat, add_generation_prompt=True)["input_ids"])
        for case in questions.cases
    )
    answered = len(questions.cases) * questions.header.max_new_tokens
    flops = sum(
        estimate.reading(estimate.measure(one.folder, WHOLE), asked_tokens + answered, answered)
        for who, one in todo
        if not known[who]
    )
    rate, cores = estimate.matrix_rate(True), len(os.sched_getaffinity(0))
    seconds = flops / (rate * cores * estimate.EFFICIENCY)
    places = estimate.places(
        lambda at: flops / at, settings.pools, flops_per_core=rate, cores=cores
    )
    say(f"suite      {questions.name}, {len(questions.cases)} cases, {asked_tokens:,} tokens")
    for who, before in known.items():
        say(f"judges     {who}{', found from before' if before else ''}")
    say(f"time       about {estimate.words(seconds)} on this machine")
    for line in estimate.costs(places):
        say(line)
    return {
        "dry_run": True,
        "suite_hash": questions.hash,
        "cases": len(questions.cases),
        "tokens": asked_tokens,
        "judged_before": known,
        "seconds": round(seconds, 1),
        "cost_nusd": {place.pool: place.nusd for place in places},
    }


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar a model on a terminal; in a log, a line each tenth."""
    console = Console(file=sys.stderr)
    with Bars(console=console, disable=not console.is_terminal) as bars:

        def start(who: str, cases: int) -> Advance:
            task = bars.add_task(f"judging {who}", total=cases)
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                before, done = done, done + count
                bars.advance(task, count)
                if not console.is_terminal and before * 10 // cases < done * 10 // cases:
                    print(f"judging {who}: {done}/{cases}", file=sys.stderr, flush=True)

            return advance

        yield start


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--name", default="helpdesk", help="registered model, adapter and gate")
    result.add_argument(
        "--adapter", help="folder or hash of an adapter or of weights; default: the newest stored"
    )
    result.add_argument("--suite", type=Path, help="suite file or folder; default: the stored one")
    result.add_argument("--limit", type=int, help="judge on a seeded sample of so many cases")
    result.add_argument("--seed", type=int, default=0, help="seed of the sample")
    result.add_argument("--batch-size", type=int, default=16, help="prompts answered together")
    result.add_argument("--promote", action="store_true", help="ask the gate; exit 3 if it refuses")
    result.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    result.add_argument("--force", action="store_true", help="judge again what was judged before")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = vars(parser().parse_args(argv))
    dry = options.pop("dry_run")

    def job() -> dict[str, Any]:
        settings = config.load()
        if dry:
            del options["promote"]
            with closing(open_ledger(settings.database_url)) as ledger:
                registry = Registry(settings, ledger)
                return dry_run(settings, registry, say=to_stderr, **options)
        with (
            closing(open_ledger(settings.database_url)) as ledger,
            shown_progress() as progress,
        ):
            verdict = evaluate(settings, Registry(settings, ledger), progress=progress, **options)
        verdict.shown()
        return verdict.as_dict()

    return closed(
        job,
        code=lambda line: gate_code(line) if not dry else 0,
        interrupted="interrupted; what was judged before is kept",
    )


if __name__ == "__main__":
    raise SystemExit(main())

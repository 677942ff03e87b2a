"""Judge a candidate against its base and the champion, register it, and promote it if asked.

    python -m pipelines.evaluate --name helpdesk                        # the newest stored adapter
    python -m pipelines.evaluate --name helpdesk --adapter 3f0a… --promote
    python -m pipelines.evaluate --name helpdesk-student --promote      # whole weights as well
    ray job submit --working-dir . -- python -m pipelines.evaluate --name helpdesk --limit 240

A candidate is an adapter, or whole weights: a student, a quantized or fully tuned model. What was
judged before on the same suite is found again, not computed. A table goes to standard
error, one JSON object to standard output as the last line. Exit code 0 when all is done, 3 when
the gate refuses, 1 with one sentence on standard error when something is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from factory import config
from factory.catalog import pull
from factory.catalog.code import UNKNOWN, code_state
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.compare import compare
from factory.evaluation.harness import Judged, judge
from factory.evaluation.results import EvaluationError
from factory.evaluation.suite import Case, Suite, SuiteError, read
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.ledger.store import open_ledger
from factory.registry.lineage import Lineage, library_versions
from factory.registry.versions import WEIGHTS, Registry
from factory.training import dataset
from factory.training.screening import asked
from pipelines.closing import closed, gate_code
from pipelines.verdict import Verdict

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
    questions = find_suite(store, name, suite)
    if limit is not None:
        questions = questions.sample(limit, seed)
    refuse_generated(store, questions)
    tuned = find_adapter(store, name, adapter)
    model, base = find_base(settings, store, name, tuned)
    lineage = lineage_of(tuned, model, base, questions, env)

    def judged(who: str, weights: Object, catalog: str, wearing: Path | None = None) -> Judged:
        entry = settings.models.get(catalog)
        answerer = TransformersAnswerer(
            weights.path,
            wearing,
            batch_size=batch_size,
            threads=len(os.sched_getaffinity(0)),
            max_model_len=entry.max_model_len if entry else None,
        )
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


def find_suite(store: ObjectStore, name: str, path: Path | None) -> Suite:
    """The suite at `path`, or the newest stored one of that name. Raises `SuiteError`."""
    if path is not None:
        return read(path)
    stored = store.find("suites", name)
    if stored is None:
        raise SuiteError(
            f"there is no suite '{name}' in the object store; make one first "
            "(`python -m pipelines.helpdesk` makes the pilot's) or pass --suite FILE"
        )
    return read(stored.path)


def refuse_generated(store: ObjectStore, suite: Suite) -> None:
    """Raises `SuiteError` when a case of the suite was written by a model.

    It compares with the examples that stored data sets mark as synthetic: what a model wrote must
    not decide which model is promoted.
    """
    questions = {_words(asked_of(case)): case.id for case in suite.cases}
    for item in store.list("datasets"):
        if not item.meta.get("synthetic"):
            continue
        parts = [part for part in dataset.SPLITS if (item.path / f"{part}.jsonl").exists()]
        for examples in dataset.read(item.path, parts).values():
            for example in examples:
                if example.synthetic and (found := questions.get(_words(asked(example)))):
                    raise SuiteError(
                        f"case '{found}' of suite '{suite.name}' is the synthetic example "
                        f"'{example.id}' of data set '{item.name}'; judge with real cases only"
                    )


def asked_of(case: Case) -> str:
    """What the user of a case says."""
    return "\n".join(one.content for one in case.messages if one.role == "user")


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def find_adapter(store: ObjectStore, name: str, wanted: str | None) -> Object:
    """A stored candidate by hash, by folder, or the newest of that name; a new folder is stored.

    Raises `EvaluationError`.
    """
    stored = [
        item for kind in ("adapters", WEIGHTS) for item in store.list(kind) if item.name == name
    ]
    if wanted is None:
        if not stored:
            raise EvaluationError(
                f"there is no adapter '{name}' in the object store, and no weights of that name; "
                "tune one with `python -m pipelines.finetune` or pass --adapter FOLDER"
            )
        return max(stored, key=lambda item: (item.created, item.hash))
    folder = Path(wanted)
    if not folder.is_dir():
        found = [item for item in stored if len(wanted) >= 8 and item.hash.startswith(wanted)]
        if len(found) != 1:
            raise EvaluationError(
                f"'{wanted}' is neither a folder nor the hash (8 digits or more) of one adapter "
                f"or model '{name}'"
            )
        return found[0]
    whole = (folder / "config.json").is_file()
    for file in () if whole else ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise EvaluationError(f"'{folder}' has no {file}; name a complete PEFT adapter folder")
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    for item in stored:
        if dict(item.files) == files:
            return item

    def fill(target: Path) -> None:
        for relative in files:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / relative, target / relative)

    return store.put(WEIGHTS if whole else "adapters", name, fill)


def find_base(
    settings: Settings, store: ObjectStore, name: str, adapter: Object
) -> tuple[str, Object]:
    """Catalog name and weights of the model a candidate was made from.

    Raises `EvaluationError` when it is not pulled, or has changed since.
    """
    trained_on = (adapter.meta.get("config") or {}).get("model")
    wearers = [key for key, model in settings.models.items() if name in model.adapters]
    known = [trained_on] if trained_on in settings.models else wearers
    if not known:
        raise EvaluationError(
            f"no model lists an adapter '{name}'; add it under models.MODEL.adapters"
        )
    model = str(known[0])
    base = pull.find(settings, model, store)
    if base is None:
        raise EvaluationError(f"model '{model}' is not pulled; run `factory models pull {model}`")
    tuned_on = adapter.meta.get("base_revision")
    if tuned_on is not None and tuned_on not in (base.hash, base.meta.get("revision")):
        raise EvaluationError(
            f"adapter {adapter.hash[:12]} was tuned on {model} {tuned_on[:12]}, but the pulled "
            f"weights are {base.hash[:12]}; tune again, or pull the model it was tuned on"
        )
    return model, base


def lineage_of(
    adapter: Object, model: str, base: Object, suite: Suite, env: Mapping[str, str]
) -> Lineage:
    """Lineage of an adapter from what its tuning recorded and what is installed here."""
    meta = adapter.meta
    training = dict(meta.get("config") or {})
    seeds = {"train": training["seed"]} if isinstance(training.get("seed"), int) else {}
    return Lineage(
        base_model=model,
        base_hash=base.hash,
        base_revision=str(meta.get("base_revision") or base.meta.get("revision") or UNKNOWN),
        data_hash=str(meta.get("data_hash") or UNKNOWN),
        suite_hash=suite.hash,
        config=training,
        seeds=seeds,
        synthetic=dict(meta.get("synthetic") or {}),
        code=code_state(env),
        versions=library_versions() | dict(meta.get("libraries") or {}),
    )


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
    result.add_argument("--force", action="store_true", help="judge again what was judged before")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = vars(parser().parse_args(argv))

    def job() -> dict[str, Any]:
        settings = config.load()
        with (
            closing(open_ledger(settings.database_url)) as ledger,
            shown_progress() as progress,
        ):
            verdict = evaluate(settings, Registry(settings, ledger), progress=progress, **options)
        verdict.shown()
        return verdict.as_dict()

    return closed(job, code=gate_code, interrupted="interrupted; what was judged before is kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())

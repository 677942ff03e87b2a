"""Quantize a model for serving, and judge it like any other candidate.

    python -m pipelines.quantize --source helpdesk-student@champion --scheme w8a8
    python -m pipelines.quantize --source helpdesk@3 --scheme w4a16 --promote
    ray job submit --working-dir . -- python -m pipelines.quantize --scheme w8a8 --rounds 0

The source is a version of the registry (adapters are folded into their base), a catalog entry or a
folder. The result is registered under the source's name with its accuracy; its engine's speed and
memory are measured beside the original's, in turns. `w8a8` is int8 weights with activations
quantized as they come, `w4a16` 4-bit weights by groups; vLLM runs both on CPU and GPU. A table goes
to standard error, one JSON object to standard output as the last line. Exit code 0 when all is
done, 3 when the gate refuses, 1 with one sentence on standard error when something is wrong.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from factory import config
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.evaluation.suite import Suite
from factory.ledger.store import open_ledger
from factory.registry.versions import WEIGHTS, Registry
from factory.training.quantization import Scheme, quantize
from pipelines.candidate import find_suite
from pipelines.closing import closed, gate_code
from pipelines.engine_speed import EngineProcess
from pipelines.evaluate import evaluate, shown_progress
from pipelines.lesson import find_teacher
from pipelines.taught import Teacher
from pipelines.verdict import Verdict

CASES = 24
"""Questions of a round, asked at once."""


def make(store: ObjectStore, source: Teacher, name: str, scheme: Scheme) -> Object:
    """The quantized weights, found or made. Raises `TrainingError` or `CatalogError`."""
    arguments = {"model": source.base_model, "source": source.name, "scheme": scheme}
    meta = {
        "pipeline": "quantize",
        "config": arguments,
        "source_hash": source.hash,
        "base_model": source.base_model,
        "base_revision": source.base_revision,
        "data_hash": source.data_hash,
    }
    for item in store.list(WEIGHTS):
        if item.name == name and all(item.meta.get(key) == meta[key] for key in meta):
            return item

    def fill(folder: Path) -> dict[str, Any]:
        return {"quantized": asdict(quantize(source.path, scheme, folder))}

    return store.put(WEIGHTS, name, fill, meta)


def measure(suite: Suite, original: Path, quantized: Path, rounds: int) -> dict[str, Any]:
    """Both engines asked in turns: requests a second, decoded tokens a second, memory.

    Raises `EvaluationError` when an engine cannot run one of them.
    """
    chats = [case.chat for case in suite.cases]
    rows: dict[str, dict[str, list[float]]] = {}
    with EngineProcess(original) as one, EngineProcess(quantized) as other:
        pair = {"original": one, "quantized": other}
        for number in range(rounds):
            part = [chats[(number * CASES + at) % len(chats)] for at in range(CASES)]
            for who, engine in pair.items():
                row = rows.setdefault(who, {"requests_per_s": [], "tokens_per_s": []})
                short = engine.round(part, suite.header.max_new_tokens)
                row["requests_per_s"].append(short["requests_per_s"])
                row["tokens_per_s"].append(engine.round(part[:8], 48, whole=True)["tokens_per_s"])
        ready = {who: engine.ready for who, engine in pair.items()}
    return {
        who: {kind: statistics.median(values) for kind, values in row.items()} | ready[who]
        for who, row in rows.items()
    }


def run(
    settings: Settings,
    *,
    source: str,
    scheme: Scheme,
    name: str | None = None,
    rounds: int = 3,
    limit: int | None = None,
    promote: bool = False,
) -> tuple[Verdict, dict[str, Any]]:
    """Quantize, judge, register, and measure; the verdict and the closing JSON object.

    Raises `TrainingError`, `EvaluationError`, `SuiteError`, `CatalogError` or `RegistryError`.
    """
    store = ObjectStore(settings.objects)
    found = find_teacher(settings, store, source)
    label = name or source.partition("@")[0]
    suite = find_suite(store, label, None)
    made = make(store, found, label, scheme)
    speed = measure(suite, found.path, made.path, rounds) if rounds else {}
    with closing(open_ledger(settings.database_url)) as ledger, shown_progress() as progress:
        verdict = evaluate(
            settings,
            Registry(settings, ledger),
            label,
            adapter=made.hash,
            limit=limit,
            promote=promote,
            progress=progress,
        )
    said = verdict.as_dict()
    return verdict, {
        "weights": str(made.path),
        "hash": made.hash,
        "scheme": scheme,
        "source": found.name,
        "quantized": made.meta["quantized"],
        "engines": speed,
        **said,
    }


def show(console: Console, closing_line: dict[str, Any]) -> None:
    """Speed and memory beside the original's."""
    table = Table(title=f"{closing_line['source']} and its {closing_line['scheme']} form in vLLM")
    for column in ("weights", "requests/s", "decoded tokens/s", "engine memory", "on disk"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for who, row in closing_line["engines"].items():
        table.add_row(
            who,
            f"{row['requests_per_s']:.1f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['rss_mb']:.0f} MB",
            f"{row['weights_mb']:.0f} MB",
        )
    console.print(table)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.quantize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--source", default="helpdesk@champion", help="what is quantized")
    result.add_argument("--scheme", choices=get_args(Scheme), default="w8a8", help="how")
    result.add_argument("--name", help="registered name, suite and gate; default: the source's")
    result.add_argument("--rounds", type=int, default=3, help="of each engine; 0 measures none")
    result.add_argument("--limit", type=int, help="judge on a seeded sample of so many cases")
    result.add_argument("--promote", action="store_true", help="ask the gate; exit 3 if it refuses")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = vars(parser().parse_args(argv))

    def job() -> dict[str, Any]:
        verdict, line = run(config.load(), **options)
        console = verdict.shown()
        if line["engines"]:
            show(console, line)
        return line

    return closed(job, code=gate_code)


if __name__ == "__main__":
    raise SystemExit(main())

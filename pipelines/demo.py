"""The whole line once, on real parts: pull, data, tune, judge, promote, serve, account, report.

    python -m pipelines.demo                   # what `make demo` runs
    python -m pipelines.demo --requests 100 --max-steps 30

Writes `demo/report.json` and `demo/report.html`, prints a table, and leaves nothing running.
State stays under `home`, so `factory up` afterwards serves the version promoted here.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from factory import Factory
from factory.catalog.errors import CatalogError
from factory.cluster.errors import ClusterError
from factory.config import ConfigError
from factory.evaluation.results import CaseResult, Results
from factory.evaluation.suite import read as read_suite
from factory.ledger.errors import LedgerError
from factory.ledger.money import usd
from factory.registry.errors import RegistryError
from pipelines import helpdesk
from pipelines.report import render
from pipelines.traffic import Reply, mix, send

NAME = "helpdesk"
MODEL = "smollm2-135m"
DATA_SEED = 7
ROOT = Path(__file__).resolve().parents[1]

console = Console(stderr=True)


@dataclass(slots=True)
class Stages:
    """Wall time by stage, announced as it goes."""

    done: list[dict[str, Any]] = field(default_factory=list)
    begun: int = 0

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.begun += 1
        console.print(f"[bold]{self.begun}. {name}[/bold]  {what}", highlight=False)
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self.done.append({"name": name, "seconds": round(seconds, 1)})
        console.print(f"   [dim]{name} took {seconds:.1f} s[/dim]", highlight=False)


def main(
    requests: Annotated[int, typer.Option(min=20, help="Requests to send.")] = 300,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the job's own.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=30, help="Judge on a seeded sample of the suite.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the traffic.")] = 7,
) -> None:
    """Run the line end to end and write a report.

    Example: python -m pipelines.demo --requests 300
    """
    begun = time.monotonic()
    try:
        with Factory(progress=_say) as factory:
            report = run(factory, requests=requests, max_steps=max_steps, cases=cases, seed=seed)
    except (CatalogError, ClusterError, ConfigError, LedgerError, RegistryError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been stopped")
        raise typer.Exit(130) from None
    report["wall_s"] = round(time.monotonic() - begun, 1)
    report["headline"].insert(0, {"label": "wall time", "value": _minutes(report["wall_s"])})
    save(report, out)
    show(report, out)


def run(
    factory: Factory, *, requests: int, max_steps: int | None, cases: int | None, seed: int
) -> dict[str, Any]:
    """Every stage in order; the cluster is gone when this returns or raises."""
    stages = Stages()
    with stages.stage("pull", f"{MODEL} into {factory.settings.objects}"):
        base = factory.pull(MODEL)
    with stages.stage("data", "a help desk from the standard library's own documentation"):
        corpus, suite = helpdesk.build(factory.objects, helpdesk.LABELS, DATA_SEED)
    with stages.stage("cluster", "a Ray head on this machine"):
        factory.start()
    try:
        with stages.stage("tune", "LoRA on Ray Train, as a Ray job"):
            steps = {} if max_steps is None else {"max_steps": max_steps}
            tuned = _job(factory, "finetune", **steps)
        with stages.stage("judge", "base and candidate on questions neither has seen"):
            judged = _job(factory, "evaluate", name=NAME, adapter=tuned["adapter"], limit=cases)
        with stages.stage("promote", "through the gate, or not at all"):
            decision = factory.promote(NAME, judged["version"])
            for reason in decision.reasons:
                _say(reason)
        with stages.stage("serve", "vLLM behind the gateway"):
            serving = factory.deploy()
        with stages.stage("traffic", f"{requests} mixed requests"):
            replies = _traffic(factory, serving.url, suite.path, requests, seed)
        with stages.stage("account", "every request from the ledger"):
            accounted = _account(factory, replies)
    finally:
        with stages.stage("stop", "gateway and cluster"):
            factory.down()
    champion = factory.champion(NAME)
    reference, candidate = (_results(factory, judged[who]) for who in ("base", "candidate"))
    report: dict[str, Any] = {
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _machine(),
        "model": {"name": MODEL, "hash": base.hash},
        "data": json.loads((corpus.path / "card.json").read_text("utf-8")),
        "tune": tuned | {"loss_curve": _loss_curve(factory, tuned["run_id"])},
        "judge": _judged(reference, candidate) | {"comparison": judged["against_base"]},
        "promote": {
            "passed": decision.passed,
            "version": judged["version"],
            "champion": champion.version if champion else None,
            "reasons": list(decision.reasons),
        },
        "stages": stages.done,
        **accounted,
        "lineage": _lineage(factory, judged["version"]),
    }
    report["headline"] = _headline(report)
    return report


def _job(factory: Factory, pipeline: str, **arguments: Any) -> dict[str, Any]:
    """Run one pipeline as a Ray job; returns the JSON object it ends with."""
    job = factory.submit(pipeline, working_dir=ROOT, **arguments)
    factory.wait(job, output=_relay)
    lines = [line for line in factory.jobs.logs(job).splitlines() if line.startswith("{")]
    if not lines:
        raise ClusterError(f"job {job} ended without its closing JSON line")
    return dict(json.loads(lines[-1]))


def _relay(text: str) -> None:
    """What a job prints, indented, without its closing JSON line."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("{"):
            console.print(f"   [dim]{line}[/dim]", highlight=False, markup=True, soft_wrap=True)


def _say(text: str) -> None:
    console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)


def _traffic(factory: Factory, url: str, suite: Path, count: int, seed: int) -> list[Reply]:
    """Send the mix with one key per endpoint; the keys are revoked afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from factory.ledger.keys import revoke

    made = {
        name: factory.create_key(endpoint.team, [name])
        for name, endpoint in factory.settings.endpoints.items()
    }
    keys = {name: secret for name, (secret, _) in made.items()}
    questions = mix(read_suite(suite).cases, count, seed)
    columns = (TextColumn("   requests"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=len(questions))
            return asyncio.run(send(questions, url, keys, progress=lambda _: bar.advance(task)))
    finally:
        for _, key in made.values():
            revoke(factory.ledger, key.key_id)


def _account(factory: Factory, replies: Sequence[Reply]) -> dict[str, Any]:
    """The ledger's own figures for exactly these replies, checked against what clients saw."""
    ids = [reply.headers["x-factory-request-id"] for reply in replies if _identified(reply)]
    recorded = [found for found in (factory.ledger.request(one) for one in ids) if found]
    unrecorded = len(ids) - len(recorded)
    records = [record for record, _ in recorded]
    charges = [charge for _, parts in recorded for charge in parts]
    from factory.ledger.report import costs_report

    costs = costs_report(records, charges)
    answered = [record for record in records if record.status == "ok"]
    by_tier: dict[str, list[float]] = defaultdict(list)
    for record in answered:
        by_tier[str(record.tier)].append(record.latency_ms)
    dearest = max(answered, key=lambda record: (len(record.reasons), record.cost_nusd))
    explained = factory.explain(dearest.request_id)
    return {
        "costs": _plain(costs.as_dict()),
        "tiers": _tiers(answered, charges),
        "latency": {"by_tier_ms": {tier: sorted(values) for tier, values in by_tier.items()}},
        "traffic": _kinds(replies)
        | {"sent": len(replies), "recorded": len(records), "unrecorded": unrecorded},
        "explained": {
            "request_id": dearest.request_id,
            "reasons": explained.lines(),
        },
    }


def _identified(reply: Reply) -> bool:
    return bool(reply.headers.get("x-factory-request-id"))


def _tiers(answered: Sequence[Any], charges: Sequence[Any]) -> list[dict[str, Any]]:
    spent: Counter[int] = Counter()
    for charge in charges:
        if charge.tier is not None:
            spent[charge.tier] += charge.cost_nusd
    names = {0: "0 · cache", 1: f"1 · {MODEL}", 2: "2 · larger open model", 3: "3 · premium"}
    rows = []
    for tier in sorted({record.tier for record in answered if record.tier is not None}):
        latencies = sorted(record.latency_ms for record in answered if record.tier == tier)
        rows.append(
            {
                "tier": tier,
                "name": names[tier],
                "requests": len(latencies),
                "share": len(latencies) / len(answered),
                "nusd": spent[tier],
                "usd": usd(spent[tier]),
                "p50_ms": _at(latencies, 0.50),
                "p95_ms": _at(latencies, 0.95),
            }
        )
    return rows


def _kinds(replies: Sequence[Reply]) -> dict[str, Any]:
    kinds: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        kinds[reply.request.kind].append(reply)
    rows = [
        {
            "kind": kind,
            "sent": len(group),
            "answered": sum(one.status == 200 for one in group),
            "correct": sum(one.correct for one in group),
            "cached": sum(one.headers.get("x-factory-cache") == "hit" for one in group),
            "degraded": sum(one.headers.get("x-factory-degraded") == "true" for one in group),
        }
        for kind, group in sorted(kinds.items())
    ]
    faults = {
        reply.request.fault: {
            "fault": reply.request.fault,
            "status": reply.status,
            "message": reply.error,
        }
        for reply in kinds.get("malformed", [])
    }
    unexpected = [reply for reply in replies if reply.status != reply.request.want_status]
    return {
        "kinds": rows,
        "faults": list(faults.values()),
        "unexpected": [f"{one.request.kind}: {one.status} {one.error}" for one in unexpected],
    }


def _results(factory: Factory, figures: Mapping[str, Any]) -> Results:
    return factory.results(Path(figures["results"]).parent.name)


def _judged(base: Results, candidate: Results) -> dict[str, Any]:
    def summary(results: Results) -> dict[str, Any]:
        found = results.summary
        return {
            "accuracy": found.accuracy,
            "low": found.low,
            "high": found.high,
            "secondary": dict(found.secondary),
            "p95_ms": found.p95_ms,
        }

    by_label: dict[str, list[bool]] = defaultdict(list)
    for case in candidate.cases:
        by_label[case.expected].append(case.score)
    return {
        "suite": candidate.summary.suite_name,
        "suite_hash": candidate.summary.suite_hash,
        "cases": candidate.summary.cases,
        "base": summary(base),
        "candidate": summary(candidate),
        "by_label": {
            label: {"cases": len(scores), "accuracy": sum(scores) / len(scores)}
            for label, scores in by_label.items()
        },
        "coverage": coverage(candidate.cases),
    }


def coverage(cases: Sequence[CaseResult]) -> list[tuple[float, float]]:
    """(share kept, accuracy of those kept), keeping the most confident cases first."""
    ranked = sorted(cases, key=lambda case: case.confidence or 0.0, reverse=True)
    right, curve = 0, []
    for index, case in enumerate(ranked, start=1):
        right += case.score
        if index >= 10 or index == len(ranked):
            curve.append((index / len(ranked), right / index))
    return curve


def _loss_curve(factory: Factory, run_id: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(factory.settings.mlflow_uri)
    history = client.get_metric_history(run_id, "loss")
    return [(metric.step, metric.value) for metric in history]


def _lineage(factory: Factory, version: int) -> dict[str, str]:
    lineage = factory.registry.get(NAME, version).lineage
    return {
        "data": lineage.data_hash,
        "base": f"{lineage.base_model} {lineage.base_hash}",
        "suite": lineage.suite_hash,
        "code": f"{lineage.code.commit}{' (dirty)' if lineage.code.dirty else ''}",
        "seeds": json.dumps(lineage.seeds),
        "config": json.dumps(lineage.config),
        "versions": json.dumps(lineage.versions),
    }


def _headline(report: Mapping[str, Any]) -> list[dict[str, str]]:
    judge, costs = report["judge"], report["costs"]
    cached = next((row["share"] for row in report["tiers"] if row["tier"] == 0), 0.0)
    comparison = judge["comparison"]
    return [
        {"label": "accuracy of the base", "value": f"{judge['base']['accuracy']:.1%}"},
        {"label": "accuracy when tuned", "value": f"{judge['candidate']['accuracy']:.1%}"},
        {
            "label": "gain, 95 % interval",
            "value": f"+{comparison['low']:.1%} to +{comparison['high']:.1%}",
        },
        {"label": "answered from the cache", "value": f"{cached:.0%}"},
        {"label": "USD per 1,000 requests", "value": costs["cost_per_1k_usd"]},
        {
            "label": "of what the top tier alone would cost",
            "value": f"{costs['cost_nusd'] / max(costs['top_tier_nusd'], 1):.2%}",
        },
    ]


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def save(report: Mapping[str, Any], out: Path) -> None:
    """Write both files, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(report, indent=2, default=str)),
        ("report.html", render(report)),
    ):
        draft = out / f".{name}"
        draft.write_text(text, "utf-8")
        draft.replace(out / name)


def show(report: Mapping[str, Any], out: Path) -> None:
    """The closing table on standard output."""
    table = Table(title="The first line, end to end", show_header=False, title_justify="left")
    for item in report["headline"]:
        table.add_row(item["label"], item["value"])
    for row in report["tiers"]:
        figures = f"{row['requests']} requests, {row['share']:.1%}, ${row['usd']}"
        table.add_row(f"tier {row['name']}", f"{figures}, p50 {row['p50_ms']:.0f} ms")
    table.add_row("the same at the top tier", f"${report['costs']['top_tier_usd']}")
    table.add_row("gate", "passed" if report["promote"]["passed"] else "refused")
    table.add_row("report", f"{out / 'report.html'} and {out / 'report.json'}")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    typer.run(main)

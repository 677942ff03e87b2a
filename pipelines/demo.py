"""The whole line on real parts: tune, judge, promote, serve; then distil, and serve both.

    python -m pipelines.demo                   # what `make demo` runs
    python -m pipelines.demo --requests 100 --max-steps 30

A small model is tuned, judged and promoted, and a student of less than half its size is distilled
from it, judged and promoted as well. Mixed traffic is then sent twice: to the teacher alone, and to
the cascade of both, in which the student answers what it is sure of.

Writes `demo/report.json` and `demo/report.html`, prints a table, and leaves nothing running. What
was done before under the same `home` is found again, so an interrupted demo goes on where it
stopped. `factory up` afterwards serves the teacher, `factory --config demo/factory.yaml up` the
cascade.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from factory import Factory
from factory.cluster.errors import ClusterError
from factory.config import find
from factory.evaluation.suite import read as read_suite
from factory.evaluation.suite import write as write_suite
from factory.ledger.answers import trim
from factory.registry.gate import GateDecision
from factory.training import config as training
from factory.training import dataset
from factory.training.config import TrainConfig
from pipelines import cascade, findings, helpdesk
from pipelines.accounting import account
from pipelines.cascade import STUDENT, Pass
from pipelines.closing import ERRORS, FAILED, INTERRUPTED
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
    requests: Annotated[int, typer.Option(min=20, help="Requests to send, twice.")] = 300,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the jobs' own.")
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
    file = out / "factory.yaml"
    try:
        with Factory(progress=_say) as factory:
            cascade.write_config(find(), factory.settings.home, file)
            with Factory(file, progress=_say) as both:
                line = Line(factory, both, requests, max_steps, cases, seed)
                report = line.run()
    except ERRORS as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        console.print(
            "interrupted; everything that was started has been stopped, and the same command "
            "goes on from here"
        )
        raise typer.Exit(INTERRUPTED) from None
    report["wall_s"] = round(time.monotonic() - begun, 1)
    report["headline"].insert(0, {"label": "wall time", "value": _minutes(report["wall_s"])})
    save(report, out)
    show(report, out)
    if report["failed"]:
        raise typer.Exit(FAILED)


class Line:
    """The demo under way: `factory` serves the teacher alone, `both` the cascade."""

    def __init__(
        self,
        factory: Factory,
        both: Factory,
        requests: int,
        max_steps: int | None,
        cases: int | None,
        seed: int,
    ) -> None:
        self.factory, self.both = factory, both
        self.requests, self.cases, self.seed = requests, cases, seed
        self.steps = {} if max_steps is None else {"max_steps": max_steps}
        self.stages = Stages()
        self.failed = ""

    def run(self) -> dict[str, Any]:
        """Every stage in order; the cluster is gone when this returns or raises."""
        factory, stage = self.factory, self.stages.stage
        with stage("pull", f"{MODEL} into {factory.settings.objects}"):
            self.base = factory.pull(MODEL)
        with stage("data", "a help desk from the standard library's own documentation"):
            self.corpus, self.suite = helpdesk.build(factory.objects, helpdesk.LABELS, DATA_SEED)
            self.prompts = helpdesk.build_prompts(factory.objects, helpdesk.LABELS, DATA_SEED)
        with stage("cluster", "a Ray head on this machine"):
            factory.start()
        try:
            report = self._teacher()
            student = self._tried(self._student) if factory.champion(NAME) else None
            alone = self._alone()
            report |= alone.accounted
            served = student is not None and student["promote"]["passed"]
            both = self._tried(lambda: self._both(alone)) if served else None
        finally:
            with stage("stop", "gateway and cluster"), _undisturbed():
                factory.down()
        report |= {"student": student, "cascade": both, "stages": self.stages.done}
        report |= {"headline": _headline(report), "failed": self.failed}
        return report

    def _tried(self, step: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What a step of the second half found; when it fails, the first half is still reported."""
        try:
            return step()
        except ERRORS as error:
            self.failed = str(error)
            console.print(f"   [red]error:[/red] {error}", highlight=False)
            return None

    def _teacher(self) -> dict[str, Any]:
        """Tune, judge and promote the model on its own."""
        factory, stage = self.factory, self.stages.stage
        with stage("tune", "LoRA on Ray Train, as a Ray job"):
            name = self._run_name("teacher", self.base.hash)
            tuned = _job(factory, "finetune", run_name=name, **self.steps)
        with stage("judge", "base and candidate on questions neither has seen"):
            judged = _job(
                factory, "evaluate", name=NAME, adapter=tuned["adapter"], limit=self.cases
            )
        with stage("promote", "through the gate, or not at all"):
            decision = self._promote(factory, NAME, judged["version"])
        self.taught = judged["candidate" if decision.passed else "champion"]
        reference, candidate = (
            findings.results(factory, judged[who]) for who in ("base", "candidate")
        )
        return {
            "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": findings.machine(),
            "model": {"name": MODEL, "hash": self.base.hash},
            "data": json.loads((self.corpus.path / "card.json").read_text("utf-8")),
            "tune": tuned | {"loss_curve": findings.loss_curve(factory, tuned["run_id"])},
            "judge": findings.judged(reference, candidate) | {"comparison": judged["against_base"]},
            "promote": _promotion(decision, factory, NAME, judged["version"]),
            "lineage": findings.lineage(factory, NAME, judged["version"]),
        }

    def _student(self) -> dict[str, Any]:
        """Distil, judge and promote the student of the champion."""
        both, stage = self.both, self.stages.stage
        champion = both.champion(NAME)
        assert champion is not None
        with stage("distil", "a third of the layers, taught by the champion"):
            name = self._run_name("student", champion.adapter_hash, self.prompts.hash)
            made = _job(both, "distill", run_name=name, **self.steps)
        with stage("judge the student", "on the same questions"):
            judged = _job(
                both,
                "evaluate",
                name=STUDENT,
                adapter=made["weights"],
                suite=self.suite.path,
                limit=self.cases,
            )
        with stage("promote the student", "through a gate of its own"):
            decision = self._promote(both, STUDENT, judged["version"])
        return {
            "distil": made,
            "judge": judged["candidate"],
            "promote": _promotion(decision, both, STUDENT, judged["version"]),
        }

    def _alone(self) -> Pass:
        """Serve the teacher, send the traffic, and account for it."""
        # What an earlier demo left in tier 0 would answer for the models.
        trim(self.factory.ledger, datetime.now(UTC), 0)
        with self.stages.stage("serve", "vLLM behind the gateway"):
            serving = self.factory.deploy()
        with self.stages.stage("traffic", f"{self.requests} mixed requests"):
            replies, seconds = self._send(self.factory, serving.url)
        with self.stages.stage("account", "every request from the ledger"):
            accounted = account(self.factory, replies)
        return Pass(replies=replies, accounted=accounted, seconds=seconds)

    def _both(self, alone: Pass) -> dict[str, Any]:
        """Serve the student below its teacher, send the same requests, and compare."""
        with self.stages.stage(
            "calibrate", "from which confidence on the student's answer is sent"
        ):
            threshold = self._calibrate()
        with self.stages.stage("serve both", "the student on tier 1, its teacher on tier 2"):
            serving = self.both.deploy()
        with self.stages.stage("traffic to both", "the same requests again"):
            replies, seconds = self._send(self.both, serving.url)
        with self.stages.stage("account for both", "what the student saves"):
            ladder = Pass(replies=replies, accounted=account(self.both, replies), seconds=seconds)
            pool = next(iter(self.factory.settings.pools.values()))
            compared = cascade.compared(alone, ladder, pool.nusd_per_hour)
        return {**compared, **threshold, **_part(ladder)}

    def _run_name(self, who: str, *made_from: str) -> str:
        """The name of a run that is the same if everything is that decides its result."""
        from factory.training.distill import DistillConfig
        from pipelines import distill, finetune

        config: TrainConfig = (
            training.load(finetune.DEFAULT_CONFIG, self.steps)
            if who == "teacher"
            else training.load_as(DistillConfig, distill.DEFAULT_CONFIG, self.steps)
        )
        decides = "\n".join([config.model_dump_json(), self.corpus.hash, *made_from])
        return f"demo-{who}-{hashlib.sha256(decides.encode()).hexdigest()[:8]}"

    def _promote(self, factory: Factory, name: str, version: int) -> GateDecision:
        decision = factory.promote(name, version)
        for reason in decision.reasons:
            _say(reason)
        return decision

    def _calibrate(self) -> dict[str, Any]:
        """Ask the student the validation split, whose answers it has not learned."""
        split = dataset.read(self.corpus.path, ["validation"])["validation"]
        file = self.both.settings.home / "run" / "calibration.suite"
        write_suite(helpdesk.suite(split, helpdesk.LABELS), file)
        target = round(self.taught["accuracy"], 3)
        found = cascade.calibrate(self.both, file, target, lambda _: None)
        threshold = next(iter(found.values()))
        for reason in threshold.reasons:
            _say(reason)
        return {"threshold": threshold.value, "target": target, "why": list(threshold.reasons)}

    def _send(self, factory: Factory, url: str) -> tuple[list[Reply], float]:
        """Send the mix with one key per endpoint; the keys are revoked afterwards."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from factory.ledger.keys import revoke

        made = {
            name: factory.create_key(endpoint.team, [name])
            for name, endpoint in factory.settings.endpoints.items()
        }
        keys = {name: secret for name, (secret, _) in made.items()}
        questions = mix(read_suite(self.suite.path).cases, self.requests, self.seed)
        columns = (TextColumn("   requests"), BarColumn(), MofNCompleteColumn())
        begun = time.monotonic()
        try:
            with Progress(*columns, console=console) as bar:
                task = bar.add_task("", total=len(questions))
                sending = send(questions, url, keys, progress=lambda _: bar.advance(task))
                return asyncio.run(sending), time.monotonic() - begun
        finally:
            for _, key in made.values():
                revoke(factory.ledger, key.key_id)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not keep what was started from being stopped."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _promotion(decision: GateDecision, factory: Factory, name: str, version: int) -> dict[str, Any]:
    champion = factory.champion(name)
    return {
        "passed": decision.passed,
        "version": version,
        "champion": champion.version if champion else None,
        "reasons": list(decision.reasons),
    }


def _part(ladder: Pass) -> dict[str, Any]:
    """What the page shows of the second pass beside the comparison."""
    kept = ("tiers", "latency", "traffic", "explained")
    return {f"{key}_of_both": ladder.accounted[key] for key in kept}


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
        *_saved(report["cascade"]),
    ]


def _saved(found: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What the student below its teacher changes."""
    if found is None:
        return []
    teacher, both = found["teacher"], found["cascade"]
    return [
        {"label": "USD per 1,000 with the student below", "value": both["cost_per_1k_usd"]},
        {"label": "saved by the student", "value": f"{found['saving']:.0%}"},
        {
            "label": "questions answered right, teacher and both",
            "value": f"{teacher['accuracy']:.1%} and {both['accuracy']:.1%}",
        },
        {
            "label": "answers a second, teacher and both",
            "value": f"{teacher['answers_per_s']:.1f} and {both['answers_per_s']:.1f}",
        },
    ]


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
    if (both := report["cascade"]) is not None:
        for row in both["tiers_of_both"]:
            figures = f"{row['requests']} requests, {row['share']:.1%}, ${row['usd']}"
            table.add_row(f"both: tier {row['name']}", f"{figures}, p50 {row['p50_ms']:.0f} ms")
    elif (student := report["student"]) is not None:
        table.add_row("the student's gate", "; ".join(student["promote"]["reasons"]))
    if report["failed"]:
        table.add_row("the second half failed", report["failed"])
    table.add_row("report", f"{out / 'report.html'} and {out / 'report.json'}")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    typer.run(main)

"""What an evaluation found out and did: a table for people, plain values for scripts.

verdict = evaluate(settings, registry, "helpdesk")       # pipelines.evaluate
verdict.show(Console(stderr=True))
json.dumps(verdict.as_dict())
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from factory.evaluation.compare import Comparison
from factory.evaluation.harness import Judged
from factory.registry.gate import GateDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything an evaluation found out and did."""

    name: str
    version: int
    base: Judged
    candidate: Judged
    champion: Judged | None
    champion_version: int | None
    against_base: Comparison
    against_champion: Comparison | None
    decision: GateDecision | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the closing JSON line."""
        summary = self.candidate.results.summary
        return {
            "name": self.name,
            "version": self.version,
            "suite": {"name": summary.suite_name, "version": summary.suite_version},
            "suite_hash": summary.suite_hash,
            "cases": summary.cases,
            "base": _figures(self.base),
            "candidate": _figures(self.candidate),
            "champion": None
            if self.champion is None
            else {"version": self.champion_version, **_figures(self.champion)},
            "against_base": asdict(self.against_base),
            "against_champion": None
            if self.against_champion is None
            else asdict(self.against_champion),
            "promoted": None if self.decision is None else self.decision.passed,
            "reasons": [] if self.decision is None else list(self.decision.reasons),
        }

    def shown(self) -> Console:
        """Print what `show` prints to standard error; returns where."""
        console = Console(file=sys.stderr, highlight=False)
        if not console.is_terminal:
            console.width = 120
        self.show(console)
        return console

    def show(self, console: Console) -> None:
        """Print the table, the comparisons and what the gate said."""
        summary = self.candidate.results.summary
        table = Table(
            title=f"{self.name}: suite {summary.suite_name} v{summary.suite_version}, "
            f"{summary.cases} cases, scorer {summary.scorer}"
        )
        for column in ("model", "accuracy", "95 % interval", "other scorers", "p50 ms", "p95 ms"):
            table.add_column(column, justify="left" if column == "model" else "right")
        table.add_column("USD per 1,000", justify="right")
        rows = [("base", self.base)]
        if self.champion is not None:
            rows.append((f"champion v{self.champion_version}", self.champion))
        rows.append((f"candidate v{self.version}", self.candidate))
        for label, judged in rows:
            found = judged.results.summary
            cost = found.cost_per_1k_usd
            table.add_row(
                label,
                f"{found.accuracy:.1%}",
                f"{found.low:.1%} to {found.high:.1%}",
                ", ".join(f"{key} {value:.1%}" for key, value in found.secondary.items()),
                f"{found.p50_ms:.0f}",
                f"{found.p95_ms:.0f}",
                "-" if cost is None else f"{cost:.6f}",
            )
        console.print(table)
        console.print(f"against base:     {self.against_base}")
        if self.against_champion is not None:
            console.print(f"against champion: {self.against_champion}")
        if self.decision is not None:
            console.print("promoted" if self.decision.passed else "not promoted")
            for reason in self.decision.reasons:
                console.print(f"  {reason}")


def _figures(judged: Judged) -> dict[str, Any]:
    summary = judged.results.summary
    cost = summary.cost_per_1k_usd
    return {
        "accuracy": summary.accuracy,
        "low": summary.low,
        "high": summary.high,
        **summary.secondary,
        "p50_ms": summary.p50_ms,
        "p95_ms": summary.p95_ms,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "cost_per_1k_usd": None if cost is None else str(cost),
        "results": str(judged.item.path),
        "reused": judged.reused,
    }

"""The gate: may this candidate become champion? A pure function of plain numbers.

decision = decide(settings.gates["helpdesk"], metrics, base=comparison, champion=None)
decision.passed, decision.reasons
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from factory.config import Gate, Price
from factory.evaluation.compare import Comparison
from factory.evaluation.results import Results, cost_nusd, usd_per_1k

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What the gate needs to know of a version, measured on one suite."""

    suite_hash: str
    cases: int
    accuracy: float
    p95_ms: float
    cost_per_1k_usd: Decimal | None

    @classmethod
    def of(cls, results: Results, price: Price | None) -> Self:
        """Metrics of saved results, at today's list price."""
        summary = results.summary
        cost = cost_nusd(results.cases, price)
        return cls(
            suite_hash=summary.suite_hash,
            cases=summary.cases,
            accuracy=summary.accuracy,
            p95_ms=summary.p95_ms,
            cost_per_1k_usd=None if cost is None else usd_per_1k(cost, summary.cases),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; money as a decimal string."""
        cost = self.cost_per_1k_usd
        return {
            "suite_hash": self.suite_hash,
            "cases": self.cases,
            "accuracy": self.accuracy,
            "p95_ms": self.p95_ms,
            "cost_per_1k_usd": None if cost is None else str(cost),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        cost = raw["cost_per_1k_usd"]
        return cls(**{**raw, "cost_per_1k_usd": None if cost is None else Decimal(cost)})


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold, looked at."""

    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'refused'}: {self.text}"


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Every check of a gate; the gate is passed when all of them are."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when at least one threshold was checked and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence a check, value against bound."""
        return tuple(str(check) for check in self.checks)


def decide(
    gate: Gate,
    candidate: Metrics,
    *,
    base: Comparison | None,
    champion: Comparison | None,
    obstacles: Sequence[str] = (),
) -> GateDecision:
    """Check the candidate against every threshold of the gate.

    `base` and `champion` compare the candidate with the bare base model and with the champion of
    today, None where there is none. Each of `obstacles` is a reason to refuse that stands before
    any number, for example a champion that was judged on another suite.
    """
    checks = [Check(False, reason) for reason in obstacles]
    checks += _own(gate, candidate)
    if gate.accuracy.better_than_base:
        checks.append(_better_than_base(candidate, base))
    tolerated = gate.accuracy.no_worse_than_champion
    if tolerated is not None and champion is not None:
        checks.append(_no_worse(candidate, champion, tolerated))
    return GateDecision(tuple(checks))


def _own(gate: Gate, candidate: Metrics) -> Iterator[Check]:
    yield Check(
        candidate.cases >= gate.min_cases,
        f"judged on {candidate.cases} cases, at least {gate.min_cases} wanted",
    )
    yield Check(
        candidate.accuracy >= gate.accuracy.min - _ROUNDING,
        f"accuracy {candidate.accuracy:.3f}, at least {gate.accuracy.min:.3f} wanted",
    )
    if gate.p95_ms is not None:
        yield Check(
            candidate.p95_ms <= gate.p95_ms.max,
            f"p95 latency {candidate.p95_ms:.0f} ms, at most {gate.p95_ms.max:.0f} ms wanted",
        )
    if gate.cost_per_1k_usd is not None:
        cost, bound = candidate.cost_per_1k_usd, gate.cost_per_1k_usd.max
        shown = "of unknown price" if cost is None else f"${cost:.6f}"
        yield Check(
            cost is not None and cost <= Decimal(str(bound)),
            f"1,000 cases cost {shown}, at most ${bound} wanted",
        )


def _better_than_base(candidate: Metrics, base: Comparison | None) -> Check:
    if base is None:
        return Check(False, "not compared with the base model; judge both on one suite")
    if wrong := _unrelated(candidate, base):
        return Check(False, f"comparison with the base: {wrong}")
    return Check(
        base.low > 0,
        f"accuracy minus base {base.difference:+.3f}, 95 % interval "
        f"[{base.low:+.3f}, {base.high:+.3f}], above zero wanted",
    )


def _no_worse(candidate: Metrics, champion: Comparison, tolerated: float) -> Check:
    if wrong := _unrelated(candidate, champion):
        return Check(False, f"comparison with the champion: {wrong}")
    return Check(
        champion.difference >= -tolerated - _ROUNDING,
        f"accuracy minus champion {champion.difference:+.3f}, 95 % interval "
        f"[{champion.low:+.3f}, {champion.high:+.3f}], at least {-tolerated:+.3f} wanted",
    )


def _unrelated(candidate: Metrics, comparison: Comparison) -> str | None:
    if comparison.suite_hash != candidate.suite_hash:
        return "made on another suite; judge both on one suite"
    if abs(comparison.candidate_score - candidate.accuracy) > _ROUNDING:
        return "made with another candidate; judge again"
    return None

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Accuracy, Ceiling, Gate
from factory.evaluation.compare import Comparison
from factory.registry.gate import GateDecision, Metrics, decide

GATE = Gate(
    accuracy=Accuracy(min=0.6, no_worse_than_champion=0.01),
    p95_ms=Ceiling(max=1500),
    cost_per_1k_usd=Ceiling(max=0.05),
    min_cases=100,
)
GOOD = Metrics(suite_hash="s", cases=200, accuracy=0.7, p95_ms=900, cost_per_1k_usd=Decimal("0.01"))


def against(
    score: float, accuracy: float = 0.7, margin: float = 0.05, suite: str = "s"
) -> Comparison:
    """A comparison with something that scored `score`."""
    difference = accuracy - score
    return Comparison(
        suite_hash=suite,
        cases=200,
        base_score=score,
        candidate_score=accuracy,
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        p_value=0.01,
        gained=30,
        lost=10,
    )


def refusals(decision: GateDecision) -> list[str]:
    return [reason for reason in decision.reasons if reason.startswith("refused: ")]


def test_a_good_candidate_passes_with_a_reason_for_every_threshold() -> None:
    decision = decide(GATE, GOOD, base=against(0.2), champion=against(0.69))
    assert decision.passed
    assert len(decision.reasons) == 6
    assert all(reason.startswith("passed: ") for reason in decision.reasons)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cases": 99}, "judged on 99 cases, at least 100 wanted"),
        ({"p95_ms": 1501.0}, "p95 latency 1501 ms, at most 1500 ms wanted"),
        ({"p95_ms": float("nan")}, "p95 latency nan"),
        ({"cost_per_1k_usd": Decimal("0.051")}, "cost $0.051000, at most $0.05 wanted"),
        ({"cost_per_1k_usd": None}, "unknown price"),
    ],
)
def test_each_bound_refuses_alone(change: dict[str, object], told: str) -> None:
    decision = decide(GATE, replace(GOOD, **change), base=against(0.2), champion=None)
    assert not decision.passed
    assert len(refusals(decision)) == 1
    assert told in refusals(decision)[0]


def test_low_accuracy_is_refused_however_cheap() -> None:
    poor = replace(GOOD, accuracy=0.5, cost_per_1k_usd=Decimal(0), p95_ms=1)
    decision = decide(GATE, poor, base=against(0.2, 0.5), champion=None)
    assert refusals(decision) == ["refused: accuracy 0.500, at least 0.600 wanted"]


def test_a_cheaper_but_worse_model_does_not_slip_through() -> None:
    cheap = replace(GOOD, cost_per_1k_usd=Decimal("0.0001"))
    decision = decide(GATE, cheap, base=against(0.2), champion=against(0.72))
    assert refusals(decision) == [
        "refused: accuracy minus champion -0.020, 95 % interval [-0.070, +0.030], "
        "at least -0.010 wanted"
    ]


def test_the_tolerance_itself_passes() -> None:
    assert decide(GATE, GOOD, base=against(0.2), champion=against(0.71)).passed


def test_noise_above_the_base_is_not_enough() -> None:
    decision = decide(GATE, GOOD, base=against(0.68), champion=None)
    assert "above zero wanted" in refusals(decision)[0]


def test_missing_and_foreign_comparisons_refuse() -> None:
    assert "not compared" in refusals(decide(GATE, GOOD, base=None, champion=None))[0]
    other = decide(GATE, GOOD, base=against(0.2, suite="t"), champion=None)
    assert "another suite" in refusals(other)[0]
    wrong = decide(GATE, GOOD, base=against(0.2, accuracy=0.9), champion=None)
    assert "another candidate" in refusals(wrong)[0]


def test_switched_off_checks_are_not_made() -> None:
    gate = Gate(accuracy=Accuracy(no_worse_than_champion=None, better_than_base=False))
    decision = decide(gate, GOOD, base=None, champion=against(0.99))
    assert decision.passed
    assert len(decision.reasons) == 2


def test_an_obstacle_refuses_whatever_the_numbers() -> None:
    decision = decide(GATE, GOOD, base=against(0.2), champion=None, obstacles=["judge it again"])
    assert not decision.passed
    assert decision.reasons[0] == "refused: judge it again"


def test_a_gate_without_checks_passes_nothing() -> None:
    assert not GateDecision(()).passed


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.3))
def test_raising_accuracy_never_turns_a_pass_into_a_refusal(
    low: float, high: float, base: float, champion: float, margin: float
) -> None:
    low, high = sorted((low, high))

    def passed(accuracy: float) -> bool:
        return decide(
            GATE,
            replace(GOOD, accuracy=accuracy),
            base=against(base, accuracy, margin),
            champion=against(champion, accuracy),
        ).passed

    assert passed(high) or not passed(low)


@given(st.decimals(0, 10, allow_nan=False, places=9) | st.none())
def test_metrics_survive_json(cost: Decimal | None) -> None:
    metrics = replace(GOOD, cost_per_1k_usd=cost)
    assert Metrics.from_dict(metrics.as_dict()) == metrics

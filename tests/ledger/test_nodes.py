from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from factory.ledger.errors import LedgerError
from factory.ledger.nodes import Call, Hold, NodeSpan, clip, counted, record, split, usage
from factory.ledger.store import Ledger

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def span(start: float, end: float, cost: int = 1000, **changes: Any) -> NodeSpan:
    values: dict[str, Any] = {
        "machine": "m",
        "node_id": "n",
        "pool": "onprem",
        "zone": None,
        "starts_at": NOON + timedelta(seconds=start),
        "ends_at": NOON + timedelta(seconds=end),
        "nusd_per_hour": 3_600_000,
        "cost_nusd": cost,
    }
    return NodeSpan(**(values | changes))


def call(request: str, start: float, length: float, price: int = 10, **changes: Any) -> Call:
    values: dict[str, Any] = {
        "request_id": request,
        "team": "support",
        "endpoint": "helpdesk",
        "model": "small",
        "starts_at": NOON + timedelta(seconds=start),
        "seconds": length,
        "list_nusd": price,
    }
    return Call(**(values | changes))


def test_spans_are_kept_and_an_hour_is_refused_the_second_time(ledger: Ledger) -> None:
    record(ledger, [span(0, 60), span(60, 120), span(0, 60, machine="other")])
    assert counted(ledger) == {
        "m": NOON + timedelta(seconds=120),
        "other": NOON + timedelta(seconds=60),
    }
    with pytest.raises(LedgerError, match=r"counted until .* already"):
        record(ledger, [span(60, 90, machine="other"), span(100, 180)])
    assert counted(ledger)["other"] == NOON + timedelta(seconds=60)
    with pytest.raises(LedgerError, match="append-only"), ledger.write() as connection:
        connection.execute(text("DELETE FROM node_hours"))


def test_usage_of_the_ledger_is_that_of_its_spans(ledger: Ledger) -> None:
    holds = (Hold("model", "small", 400), Hold("job", "tune-1", 300), Hold("overhead", "gw", 100))
    record(ledger, [span(0, 100, holds=holds), span(100, 200)])
    found = usage(ledger, NOON, NOON + timedelta(seconds=100))
    (pool,) = found.pools
    assert (pool.total_nusd, pool.workload_nusd, pool.overhead_nusd) == (1000, 300, 100)
    assert pool.idle_nusd == 600
    assert usage(ledger, NOON + timedelta(days=1)).pools == ()


def test_a_model_is_workload_while_it_answers_and_idle_else() -> None:
    holding = span(0, 100, holds=(Hold("model", "small", 800),))
    calls = [call("a", 0, 30, 30), call("b", 10, 40, 10), call("c", 90, 40, 0)]
    found = split([holding], calls)
    (pool,) = found.pools
    assert pool.workload_nusd == 480  # 0 to 50 and 90 to 100
    assert pool.idle_nusd == 520
    assert sum(found.requests.values()) == 480
    assert found.requests["a"] == 3 * found.requests["b"]
    by = {(line.kind, line.name): line for line in found.lines}
    assert by["team", "support"].usage_nusd == by["model", "small"].usage_nusd == 480
    assert by["team", "support"].allocation_nusd == 40


@given(
    spans=st.lists(
        st.tuples(
            st.integers(1, 500),
            st.integers(0, 10**9),
            st.lists(st.tuples(st.sampled_from(["model", "job", "overhead"]), st.floats(0, 0.3))),
        ),
        max_size=8,
    ),
    calls=st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 50), st.integers(0, 99)), max_size=8),
)
def test_workload_idle_and_overhead_are_the_total(spans: Any, calls: Any) -> None:
    at, made = 0, []
    for length, cost, holds in spans:
        left, held = cost, []
        for kind, share in holds:
            part = min(left, int(cost * share))
            left -= part
            held.append(Hold(kind, "small", part))
        made.append(span(at, at + length, cost, holds=tuple(held)))
        at += length
    asked = [call(f"r{n}", *values) for n, values in enumerate(calls)]
    found = split(made, asked)
    for pool in found.pools:
        assert pool.workload_nusd + pool.idle_nusd + pool.overhead_nusd == pool.total_nusd
        assert min(pool.workload_nusd, pool.idle_nusd, pool.overhead_nusd) >= 0
    assert sum(pool.total_nusd for pool in found.pools) == sum(each.cost_nusd for each in made)
    jobs = sum(line.usage_nusd for line in found.lines if line.kind == "job")
    models = sum(line.usage_nusd for line in found.lines if line.kind == "model")
    assert sum(found.requests.values()) == models
    workload = sum(pool.workload_nusd for pool in found.pools)
    assert models + jobs == workload


@given(st.integers(0, 100), st.integers(1, 100), st.integers(0, 10**6))
def test_cutting_a_span_loses_no_money(start: int, length: int, cost: int) -> None:
    whole = span(0, 200, cost, holds=(Hold("job", "j", cost // 3),))
    borders = [0, start, start + length, 200]
    parts = [
        clip(whole, NOON + timedelta(seconds=low), NOON + timedelta(seconds=high))
        for low, high in pairwise(borders)
        if high > low
    ]
    total = sum(part.cost_nusd for part in parts)
    assert 0 <= cost - total <= len(parts)
    assert all(part.idle_nusd >= 0 for part in parts)


def test_spans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(LedgerError, match="ends before it begins"):
        span(10, 10)
    with pytest.raises(LedgerError, match="holds more than it costs"):
        span(0, 1, 10, holds=(Hold("job", "j", 11),))

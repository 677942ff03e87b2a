"""The cost report: exact by hand, and the same from the database as from the records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.ledger.explanation import explain
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.report import CostsReport, costs_report, rank
from factory.ledger.store import Entry, Ledger

MakeEntry = Callable[..., Entry]
START = datetime(2026, 1, 1, tzinfo=UTC)
numbers = itertools.count()


def a_day(entry: MakeEntry) -> list[Entry]:
    """Two cheap answers, one that climbed, one from the cache, a refusal and a failure."""
    return [
        entry("cheap-1", (1_000,), latency_ms=10, prompt_tokens=40, completion_tokens=2),
        entry("cheap-2", (2_000,), latency_ms=20, team="research", endpoint="helpdesk-batch"),
        entry("climbed", (1_500, 40_000), latency_ms=40, degraded=True),
        entry("cached", (), tier=0, cache="hit", latency_ms=1),
        entry("refused", (), tier=None, status="refused", http_status=400, top_tier_nusd=0),
        entry("failed", (700,), tier=None, status="error", http_status=502, latency_ms=999),
    ]


def report_of(entries: list[Entry]) -> CostsReport:
    charges = [charge for _, charges in entries for charge in charges]
    return costs_report([request for request, _ in entries], charges)


def test_every_figure_of_a_small_day(entry: MakeEntry) -> None:
    report = report_of(a_day(entry))
    total = report.total
    assert (total.requests, total.answered, total.refused, total.errors) == (6, 4, 1, 1)
    assert (total.cache_hits, total.degraded) == (1, 1)
    assert (total.prompt_tokens, total.completion_tokens) == (40, 2)
    assert total.cost_nusd == 1_000 + 2_000 + 1_500 + 40_000 + 700
    assert report.cost_per_1k_nusd == 45_200 * 1000 // 4
    assert total.top_tier_nusd == 4 * 50_000
    assert report.saving_nusd == 200_000 - 45_200
    assert report.saving_share == 154_800 / 200_000
    assert (report.latency_p50_ms, report.latency_p95_ms) == (10, 40)


def test_each_tier_has_its_share_of_answers_and_of_cost(entry: MakeEntry) -> None:
    tiers = {line.tier: line for line in report_of(a_day(entry)).by_tier}
    assert list(tiers) == [0, 1, 2]
    assert [line.answered for line in tiers.values()] == [1, 2, 1]
    assert [line.share for line in tiers.values()] == [0.25, 0.5, 0.25]
    assert [line.calls for line in tiers.values()] == [0, 4, 1]
    assert [line.cost_nusd for line in tiers.values()] == [0, 5_200, 40_000]


def test_answers_without_a_model_are_hits_or_shared(entry: MakeEntry) -> None:
    uses = ["hit", "semantic", "shared", "miss", "off"]
    total = report_of([entry(f"r{use}", (), tier=0, cache=use) for use in uses]).total
    assert (total.cache_hits, total.shared) == (2, 1)


def test_each_endpoint_and_team_pays_for_itself(entry: MakeEntry) -> None:
    report = report_of(a_day(entry))
    assert [(line.name, line.cost_nusd) for line in report.by_endpoint] == [
        ("helpdesk", 43_200),
        ("helpdesk-batch", 2_000),
    ]
    assert [(line.name, line.answered) for line in report.by_team] == [
        ("research", 1),
        ("support", 3),
    ]


def test_no_traffic_is_a_report_too(ledger: Ledger) -> None:
    report = ledger.costs()
    assert report == report_of([])
    assert report.cost_per_1k_nusd is None
    assert report.saving_share is None
    assert report.latency_p50_ms is None
    assert json.loads(json.dumps(report.as_dict()))["cost_usd"] == "0.000000000"


def test_as_dict_has_integers_and_exact_dollars(entry: MakeEntry) -> None:
    plain = report_of(a_day(entry)).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    lines: list[dict[str, Any]] = [plain, *plain["by_tier"], *plain["by_team"]]
    for line in lines:
        for name in [name for name in line if name.endswith("_nusd")]:
            dollars = line[name.removesuffix("_nusd") + "_usd"]
            assert Decimal(dollars).scaleb(9) == line[name]


def test_the_database_counts_the_same_small_day(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record_many(a_day(entry))
    assert ledger.costs() == report_of(a_day(entry))


@st.composite
def traffic(draw: st.DrawFn) -> list[Entry]:
    """Any requests on any tiers with any charges, spread over ten minutes."""
    start = START + timedelta(days=next(numbers))
    tiers = st.none() | st.integers(0, 3)
    entries: list[Entry] = []
    for _ in range(draw(st.integers(0, 8))):
        name = f"r{next(numbers)}"
        who = {
            "team": draw(st.sampled_from(["support", "research", ""])),
            "endpoint": draw(st.sampled_from(["helpdesk", "batch", "Ünknown"])),
            "created_at": start + timedelta(minutes=draw(st.integers(0, 9))),
            "request_id": name,
        }
        charges = [
            ChargeRecord(
                charge_id=f"{name}-{seq}",
                seq=seq,
                kind=draw(st.sampled_from(["cache", "generation", "refusal"])),
                tier=draw(tiers),
                cost_nusd=draw(st.integers(0, 2**55)),
                **who,
            )
            for seq in range(draw(st.integers(0, 3)))
        ]
        request = RequestRecord(
            status=draw(st.sampled_from(["ok", "ok", "refused", "error"])),
            http_status=200,
            tier=draw(tiers),
            cache=draw(st.sampled_from(["hit", "semantic", "shared", "miss", "off"])),
            degraded=draw(st.booleans()),
            prompt_tokens=draw(st.integers(0, 2**31 - 1)),
            completion_tokens=draw(st.integers(0, 100)),
            cost_nusd=sum(charge.cost_nusd for charge in charges),
            top_tier_nusd=draw(st.integers(0, 2**58)),
            latency_ms=draw(st.floats(0, 1e6)),
            **who,
        )
        entries.append((request, charges))
    return entries


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries=traffic(), first=st.integers(0, 10), length=st.integers(0, 10))
def test_the_database_and_the_records_give_the_same_figures(
    ledger: Ledger, entries: list[Entry], first: int, length: int
) -> None:
    ledger.record_many(entries)
    day = entries[0][0].created_at.replace(hour=0, minute=0) if entries else START
    since, until = day + timedelta(minutes=first), day + timedelta(minutes=first + length)
    pure = costs_report(
        [request for request, _ in entries if since <= request.created_at < until],
        [charge for _, charges in entries for charge in charges],
        since,
        until,
    )
    if entries:
        assert ledger.costs(since, until) == pure
    assert ledger.costs() == costs_report(ledger.requests(), ledger.charges())


@given(entries=traffic())
def test_the_parts_add_up_to_the_whole(entries: list[Entry]) -> None:
    report = report_of(entries)
    total = report.total
    assert total.requests == total.answered + total.refused + total.errors == len(entries)
    assert total.cost_nusd == sum(request.cost_nusd for request, _ in entries)
    for lines in (report.by_endpoint, report.by_team):
        assert sum(line.requests for line in lines) == total.requests
        assert sum(line.cost_nusd for line in lines) == total.cost_nusd
        assert sum(line.saving_nusd for line in lines) == report.saving_nusd
    assert sum(line.answered for line in report.by_tier) == total.answered
    assert sum(line.cost_nusd for line in report.by_tier) == total.cost_nusd


@given(st.integers(1, 10_000), st.sampled_from([50, 95]))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(count: int, percent: int) -> None:
    position = rank(count, percent)
    assert 1 <= position <= count
    assert position * 100 >= count * percent
    assert (position - 1) * 100 < count * percent


def test_a_request_is_explained_in_sentences_and_in_json(entry: MakeEntry) -> None:
    request, charges = entry("r1", (1_500, 40_000), degraded=True, latency_ms=42, tier=2)
    explanation = explain(request, charges[::-1])
    lines = "\n".join(explanation.lines())
    assert "answered by tier 2, smollm2-135m (degraded)" in lines
    assert "because short prompt" in lines
    assert "part 1 of 2: generation on tier 1" in lines
    assert "part 2 of 2: generation on tier 2" in lines
    assert "cost 0.000041500 USD; at the top tier 0.000050000 USD" in lines
    plain = explanation.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert [part["cost_nusd"] for part in plain["charges"]] == [1_500, 40_000]


def test_a_refusal_is_explained(entry: MakeEntry) -> None:
    request, charges = entry(
        "r1", (), status="refused", http_status=400, tier=None, team="", error="no messages"
    )
    lines = explain(request, charges).lines()
    assert "team unknown" in lines[0]
    assert "refused with HTTP 400" in lines[0]
    assert "error: no messages" in lines

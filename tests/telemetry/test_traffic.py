"""Counting: nothing is lost or doubled, and labels stay few."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from factory.ledger.records import ChargeRecord
from factory.telemetry.traffic import Traffic

NOW = datetime(2026, 11, 24, tzinfo=UTC)
NAMES = st.sampled_from(["", "helpdesk", "search"])
TIERS = st.sampled_from([None, 0, 1, 3])


def charge(kind: str, tier: int | None, prompt: int, completion: int, cost: int) -> ChargeRecord:
    return ChargeRecord(
        charge_id="c",
        request_id="r",
        seq=0,
        created_at=NOW,
        team="support",
        endpoint="helpdesk",
        kind=kind,
        tier=tier,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_nusd=cost,
    )


CHARGES = st.builds(
    charge,
    st.sampled_from(["cache", "rule", "shared", "generation", "embedding", "refusal"]),
    TIERS,
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10**12),
)
REQUESTS = st.fixed_dictionaries(
    {
        "team": st.sampled_from(["support", "research"]),
        "endpoint": NAMES,
        "tier": TIERS,
        "model": st.sampled_from([None, "small"]),
        "status": st.sampled_from([200, 202, 404, 429, 499, 503]),
        "cache": st.sampled_from(["hit", "semantic", "shared", "miss", "off"]),
        "degraded": st.booleans(),
        "elapsed_s": st.floats(0, 300),
        "charges": st.lists(CHARGES, max_size=3),
    }
)
FREE = {"cache", "rule", "shared"}


def total(traffic: Traffic, sample: str, **labels: str) -> float:
    return sum(
        one.value
        for family in traffic.registry.collect()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    )


@given(st.lists(REQUESTS, max_size=30))
def test_every_request_token_and_nano_dollar_is_counted_once(requests):
    traffic = Traffic()
    for request in requests:
        traffic.settled(**request)
    charges = [one for request in requests for one in request["charges"]]
    paid = [one for one in charges if one.kind not in FREE]
    answered = [request for request in requests if request["status"] == 200]
    assert total(traffic, "factory_requests_total") == len(requests)
    assert total(traffic, "factory_request_duration_seconds_count") == len(answered)
    assert total(traffic, "factory_degraded_total") == sum(one["degraded"] for one in requests)
    assert total(traffic, "factory_cost_nusd_total") == sum(one.cost_nusd for one in paid)
    tokens = total(traffic, "factory_tokens_total", kind="prompt")
    assert tokens == sum(one.prompt_tokens for one in paid)
    every = sum(one.prompt_tokens + one.completion_tokens for one in charges)
    assert total(traffic, "factory_tokens_total") == every
    for status in ("200", "429", "503"):
        seen = sum(str(request["status"]) == status for request in requests)
        assert total(traffic, "factory_requests_total", status=status) == seen


def test_processes_on_one_port_are_told_apart():
    traffic = Traffic("4711")
    traffic.first_token("helpdesk", 1, 0.2)
    name = "factory_time_to_first_token_seconds"
    assert total(traffic, f"{name}_count", replica="4711", tier="1") == 1
    assert total(traffic, f"{name}_bucket", le="0.1") == 0
    assert total(traffic, f"{name}_bucket", le="0.25") == 1

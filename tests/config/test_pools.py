from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import (
    HOURS_PER_MONTH,
    NANO,
    ConfigError,
    OwnPool,
    RentedPool,
    Settings,
    default_text,
    parse,
)

OWN = {"capex_usd": 42000, "amortize_months": 36, "power_w": 1400, "nodes": 2}
SPOT = {"provider": "aws", "usd_per_hour": 0.92, "max_nodes": 4, "spot_policy": "spot"}


def document(pools: Any) -> str:
    raw = {"models": {}, "teams": {}, "endpoints": {}, "pools": pools}
    return json.dumps(raw, indent=1)


def parsed(pools: Any) -> Settings:
    return parse(document(pools), "f.yaml", Path("/srv"), {})


def test_without_pools_the_machine_is_the_pool() -> None:
    raw = {"models": {}, "teams": {}, "endpoints": {}}
    plain = parse(json.dumps(raw), "f.yaml", Path("/srv"), {}).pools
    assert plain == parse(default_text(), "the default", Path("/srv"), {}).pools
    (pool,) = plain.values()
    assert pool.market == "onprem"
    assert set(pool.residency) == {"restricted", "internal", "public"}


def test_an_own_node_costs_its_capital_energy_and_people() -> None:
    pool = parsed({"onprem": OWN | {"people_hours_per_month": 10, "space_usd_per_month": 73}})
    parts = pool.pools["onprem"].parts_nusd_per_hour
    assert parts["capital"] == pytest.approx(42000 / 36 / 730 * 1e9, abs=1)
    assert parts["energy"] == pytest.approx(1.4 * 1.5 * 0.15 * 1e9, abs=1)
    assert parts["people"] == pytest.approx(10 * 60 / 730 / 2 * 1e9, abs=1)
    assert parts["space"] == NANO // 20
    assert pool.pools["onprem"].nusd_per_hour == sum(parts.values())


@given(
    capex=st.decimals("0.01", 100_000, places=2),
    months=st.integers(1, 240),
    watts=st.floats(0.1, 5000),
    nodes=st.integers(1, 100),
)
def test_an_own_node_is_never_free(capex: Decimal, months: int, watts: float, nodes: int) -> None:
    pool = OwnPool(
        capex_usd=capex,
        amortize_months=months,
        power_w=watts,
        nodes=nodes,
        people_hours_per_month=0,
        usd_per_kwh=Decimal(0),
    )
    assert pool.nusd_per_hour > 0
    whole = pool.parts_nusd_per_hour["capital"] * months * HOURS_PER_MONTH
    assert 0 <= whole - int(capex * NANO) <= months * HOURS_PER_MONTH


def test_a_monthly_price_is_not_an_hourly_one() -> None:
    month = RentedPool(provider="aws", usd_per_month=Decimal(730), max_nodes=1)
    hour = RentedPool(provider="aws", usd_per_hour=Decimal(1), max_nodes=1)
    assert month.nusd_per_hour == hour.nusd_per_hour == NANO


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({}, "a pool without a price"),
        ({"nodes": 3, "cpus": 8}, "a pool without a price"),
        ({"provider": "aws", "max_nodes": 1}, "needs one price"),
        (SPOT | {"usd_per_month": 700}, "needs one price"),
        (SPOT | {"usd_per_hour": 0}, "greater than 0"),
        (SPOT | {"usd_per_hour": 2200}, "looks like a monthly price; use usd_per_month"),
        (OWN | {"capex_usd": 0}, "greater than 0"),
        (OWN | {"residency": ["secret"]}, "'restricted', 'internal' or 'public'"),
        (OWN | {"residency": []}, "at least 1 item"),
        (SPOT | {"zones": ["a", "a"]}, "twice"),
        (SPOT | {"zones": ["no spaces please"]}, "match pattern"),
        (SPOT | {"capex_usd": 5}, "unknown key"),
    ],
)
def test_what_is_wrong_with_a_pool_is_said_with_its_line(pool: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed({"fine": OWN, "mine": pool})
    text = str(caught.value)
    assert message in text
    assert "pools.mine" in text
    raw = json.dumps(
        {"models": {}, "teams": {}, "endpoints": {}, "pools": {"fine": OWN, "mine": 0}}, indent=1
    )
    first = next(n for n, line in enumerate(raw.splitlines(), 1) if '"mine"' in line)
    lines = [int(part.split(":")[0]) for part in text.split("line ")[1:]]
    assert all(line >= first for line in lines)


def test_no_pools_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="pools"):
        parsed({})


def test_labels_are_rays_own() -> None:
    pools = parsed(
        {"onprem": OWN, "spot": SPOT | {"region": "us-east-2", "zones": ["a", "b"]}}
    ).pools
    assert pools["onprem"].labels("onprem") == {
        "factory/pool": "onprem",
        "ray.io/market-type": "on-prem",
    }
    assert pools["spot"].labels("spot", "b") == {
        "factory/pool": "spot",
        "ray.io/market-type": "spot",
        "ray.io/availability-region": "us-east-2",
        "ray.io/availability-zone": "b",
    }
    assert "ray.io/availability-zone" not in pools["spot"].labels("spot")

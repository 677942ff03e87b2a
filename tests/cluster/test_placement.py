from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.cluster.capacity import capacity
from factory.cluster.nodehours import Node, Use
from factory.cluster.placement import PlacementError, SpotEstimate, Work, place
from factory.cluster.specs import read
from factory.config import ConfigError, OwnPool, Pool, RentedPool

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POOLS: dict[str, Pool] = {
    "onprem": OwnPool(
        capex_usd=Decimal(42000),
        amortize_months=36,
        power_w=1400,
        nodes=2,
        cpus=32,
        gpus=2,
        memory_gib=256,
        residency=("restricted", "internal", "public"),
    ),
    "spot": RentedPool(
        provider="aws",
        usd_per_hour=Decimal("0.92"),
        max_nodes=4,
        spot_policy="spot",
        cpus=8,
        gpus=1,
        memory_gib=61,
        region="us-east-2",
    ),
    "ondemand": RentedPool(
        provider="aws",
        usd_per_hour=Decimal("3.06"),
        max_nodes=2,
        cpus=8,
        gpus=1,
        memory_gib=61,
        region="us-east-2",
    ),
}


def work(**fields: Any) -> Work:
    return Work(**({"name": "tune", "cpus": 4, "gpus": 1, "hours": 6} | fields))


def why(decided: Any, pool: str) -> str:
    return next(option.why for option in decided.options if option.pool == pool)


def test_work_stays_at_home_while_there_is_room_and_bursts_when_there_is_not() -> None:
    home = place(work(), POOLS, now=NOW)
    assert home.pool == "onprem"
    assert home.options[0].cost_nusd > home.options[0].extra_nusd > 0
    burst = place(work(), POOLS, now=NOW, free={"onprem": 0, "spot": 4, "ondemand": 2})
    assert burst.pool == "spot"
    assert why(burst, "onprem") == "full: 0 of 1 nodes are free"
    assert burst.saved_nusd == burst.options[1].extra_nusd - burst.options[0].extra_nusd
    assert "more than spot" in why(burst, "ondemand")


@pytest.mark.parametrize(
    ("fields", "pool", "reason"),
    [
        ({"sensitivity": "restricted"}, "spot", "restricted data may not be there"),
        ({"class": "production"}, "spot", "may be taken away"),
        ({"latency_ms": 300, "hours": None}, "spot", "may be taken away"),
        ({"interruptible": False}, "spot", "cannot go on from a checkpoint"),
        ({"gpus": 2}, "ondemand", "a node has 1 GPUs, 2 are needed"),
        ({"nodes": 3, "gpus": 0}, "onprem", "it has 2 nodes, 3 are needed"),
        ({"deadline": NOW + timedelta(hours=6, minutes=13)}, "spot", "late"),
    ],
)
def test_what_rules_a_pool_out(fields: dict[str, Any], pool: str, reason: str) -> None:
    decided = place(work(**fields), POOLS, now=NOW)
    assert reason in why(decided, pool)
    assert decided.pool != pool


def test_a_pool_may_be_reserved_for_production() -> None:
    reserved = POOLS["onprem"].model_copy(update={"classes": ("production",)})
    decided = place(work(), POOLS | {"onprem": reserved}, now=NOW)
    assert decided.pool == "spot"
    assert why(decided, "onprem") == "reserved for production"


def test_moving_the_data_is_counted_both_ways() -> None:
    full = {"onprem": 0, "spot": 4, "ondemand": 2}
    data = {"at": "us-east-2", "read_gb": 1000, "written_gb": 10}
    near = place(work(data=data), POOLS, now=NOW, free=full)
    assert near.options[0].transfer_nusd == 0
    home = next(o for o in place(work(data=data), POOLS, now=NOW).options if o.pool == "onprem")
    assert home.transfer_nusd == 90 * 10**9
    back = {"at": "onprem", "read_gb": 1000, "written_gb": 10}
    away = place(work(data=back), POOLS, now=NOW, free=full)
    assert away.options[0].transfer_nusd == 9 * 10**8


def test_the_spot_policys_expectation_is_the_cost() -> None:
    only = {name: POOLS[name] for name in ("spot", "ondemand")}
    dear = place(work(), only, now=NOW, spot={"spot": SpotEstimate(relative_cost=0.9)})
    cheap = place(work(), only, now=NOW, spot={"spot": SpotEstimate(relative_cost=0.4)})
    assert dear.options[0].pool == cheap.options[0].pool == "spot"
    assert dear.options[0].extra_nusd > 2 * cheap.options[0].extra_nusd
    worse = place(work(), only, now=NOW, spot={"spot": SpotEstimate(relative_cost=1.2)})
    assert worse.pool == "ondemand"


def test_current_prices_override_those_configured() -> None:
    only = {name: POOLS[name] for name in ("spot", "ondemand")}
    assert place(work(), only, now=NOW, prices={"spot": 4 * 10**9}).pool == "ondemand"


def test_a_bursty_service_rents_for_the_time_it_needs() -> None:
    only = {"ondemand": POOLS["ondemand"]}
    bursty = place(work(hours=None, predictability="bursty"), only, now=NOW)
    steady = place(work(hours=None), only, now=NOW)
    assert bursty.options[0].hours == pytest.approx(steady.options[0].hours / 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deadline": NOW - timedelta(seconds=1)}, "is already past"),
        ({"gpus": 8}, "larger than any pool"),
        ({"nodes": 9}, "larger than any pool"),
        ({"data": {"at": "mars"}}, "no pool is named 'mars'"),
    ],
)
def test_what_cannot_be_placed_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        place(work(**fields), POOLS, now=NOW)


@given(
    hours=st.floats(0.1, 1000),
    gpus=st.integers(0, 2),
    nodes=st.integers(1, 4),
    sensitivity=st.sampled_from(["restricted", "internal", "public"]),
    free=st.fixed_dictionaries({name: st.integers(0, 4) for name in POOLS}),
    spare_h=st.floats(0.01, 100),
)
def test_the_chosen_pool_fits_and_no_other_that_fits_costs_less(
    hours: float, gpus: int, nodes: int, sensitivity: str, free: dict[str, int], spare_h: float
) -> None:
    deadline = NOW + timedelta(hours=hours + spare_h)
    this = work(hours=hours, gpus=gpus, nodes=nodes, sensitivity=sensitivity, deadline=deadline)
    try:
        decided = place(this, POOLS, now=NOW, free=free)
    except PlacementError:
        return
    assert {option.pool for option in decided.options} == set(POOLS)
    assert all(option.why for option in decided.options)
    fitting = [option for option in decided.options if option.fits]
    if decided.pool is None:
        assert not fitting
        return
    chosen = decided.options[0]
    assert chosen.fits
    assert chosen.extra_nusd == min(option.extra_nusd for option in fitting)
    assert sensitivity in POOLS[chosen.pool].residency
    assert free[chosen.pool] >= nodes


def test_free_nodes_are_those_not_rented_or_mostly_idle() -> None:
    nodes = [
        Node("a", "a", "onprem", cpus=32, uses=(Use("job", "j", cpus=30),)),
        Node("b", "b", "onprem", cpus=32, uses=(Use("job", "j", cpus=2),)),
        Node("c", "c", "spot", cpus=8, uses=(Use("job", "j", cpus=8),)),
        Node("d", "d", "spot", cpus=8, alive=False),
    ]
    found = capacity(POOLS, nodes, (2, 0, 24))
    assert found.free == {"onprem": 1, "spot": 3, "ondemand": 2}
    assert found.sizes["onprem"][0] == 32


def test_a_spec_is_explained_with_its_line(tmp_path: Path) -> None:
    spec = tmp_path / "w.yaml"
    spec.write_text("class: batch\nhours: 2\nsensitivity: secret\n")
    with pytest.raises(ConfigError, match=r"w\.yaml, line 3: sensitivity"):
        read(spec, Work)
    spec.write_text("deadline: 2026-11-25T00:00:00Z\n")
    with pytest.raises(ConfigError, match="needs hours"):
        read(spec, Work)
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.yaml", Work)

"""Where what is served may be."""

from __future__ import annotations

import pytest

from factory.cluster.hosting import hosts
from factory.cluster.placement import PlacementError
from factory.config import POOL_LABEL, OwnPool, RentedPool

HOME = OwnPool(
    capex_usd=1000,
    amortize_months=36,
    power_w=100,
    residency=("restricted", "internal", "public"),
)
SPOT = RentedPool(provider="aws", usd_per_hour=1, spot_policy="spot", max_nodes=2)
FIRM = RentedPool(provider="aws", usd_per_hour=3, max_nodes=2)
POOLS = {"onprem": HOME, "spot": SPOT, "ondemand": FIRM}


def test_users_never_wait_on_spot_and_restricted_data_stays_at_home() -> None:
    found = hosts(POOLS, {"production", "batch"}, {"internal"})
    assert found.pools == ("onprem", "ondemand")
    assert found.selector == {POOL_LABEL: "in(onprem,ondemand)"}
    assert found.reasons == ("spot: spot nodes may be taken away while users wait",)
    found = hosts(POOLS, {"batch"}, {"public", "restricted"})
    assert found.pools == ("onprem",)
    assert "spot: may not have restricted data" in found.reasons


def test_where_every_pool_may_hold_it_nothing_is_asked_of_ray() -> None:
    assert hosts({"onprem": HOME}, {"production"}, {"restricted"}).selector == {}
    assert hosts(POOLS, {"batch"}, {"public"}).selector == {}
    assert hosts(POOLS, [], []).selector == {}


def test_a_pool_can_be_kept_for_production() -> None:
    reserved = HOME.model_copy(update={"classes": ("production",)})
    pools = {"reserved": reserved, "onprem": HOME}
    assert hosts(pools, {"batch"}, {"internal"}).pools == ("onprem",)
    assert hosts(pools, {"production"}, {"internal"}).pools == ("reserved", "onprem")


def test_what_no_pool_may_hold_is_refused_with_the_reasons() -> None:
    with pytest.raises(PlacementError, match=r"no pool may serve production .* spot: spot nodes"):
        hosts({"spot": SPOT}, {"production"}, {"internal"})

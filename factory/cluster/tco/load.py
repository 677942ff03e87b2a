"""The load and prices of a TCO plan from the ledger's real node-hours and the configured pools.

plan = measured(usage_by_hour(ledger, since, until), settings.pools, Plan())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select

from factory.cluster.errors import ClusterError
from factory.cluster.tco.comparison import Load, Plan
from factory.config import HOURS_PER_MONTH, NANO, OwnPool, Pool, RentedPool
from factory.config.pools import default_pools
from factory.ledger.schema import NODE_HOURS
from factory.ledger.store import Ledger

LEAST_HOURS = 24
"""Fewer hours of node-hours say nothing about a month."""


def usage_by_hour(
    ledger: Ledger, since: datetime | None = None, until: datetime | None = None
) -> list[float]:
    """Busy nodes in each hour, from the first to the last that was counted; idle hours are 0.

    A node that is half held is half a busy node.
    """
    where = [] if since is None else [NODE_HOURS.c.starts_at >= since]
    if until is not None:
        where.append(NODE_HOURS.c.ends_at <= until)
    columns = (NODE_HOURS.c.starts_at, NODE_HOURS.c.ends_at, NODE_HOURS.c.cost_nusd)
    busy: dict[datetime, float] = {}
    with ledger.read() as connection:
        for row in connection.execute(select(*columns, NODE_HOURS.c.holds).where(*where)):
            held = sum(hold["nusd"] for hold in row.holds if hold["kind"] != "overhead")
            share = held / row.cost_nusd if row.cost_nusd else 0.0
            at = row.starts_at
            while at < row.ends_at:
                hour = at.replace(minute=0, second=0, microsecond=0)
                end = min(row.ends_at, hour + timedelta(hours=1))
                busy[hour] = busy.get(hour, 0.0) + share * (end - at) / timedelta(hours=1)
                at = end
    if not busy:
        return []
    first, last = min(busy), max(busy)
    count = round((last - first) / timedelta(hours=1)) + 1
    return [busy.get(first + timedelta(hours=number), 0.0) for number in range(count)]


def measured(hours: Sequence[float], pools: Mapping[str, Pool], plan: Plan) -> Plan:
    """`plan` with the load of `hours`, and prices of `pools` where it has the defaults.

    The load's two levels are the mean of the hours up to and above the mean of all. Raises
    `ClusterError` for fewer than `LEAST_HOURS` hours, or when nothing was busy.
    """
    if len(hours) < LEAST_HOURS:
        raise ClusterError(
            f"the ledger has {len(hours)} hours of node-hours; a forecast from real usage needs "
            f"{LEAST_HOURS}: let the cluster run, or state the load with --plan FILE"
        )
    mean = sum(hours) / len(hours)
    if mean <= 0:
        raise ClusterError("nothing was busy in that time; state the load with --plan FILE")
    high = [each for each in hours if each > mean]
    low = [each for each in hours if each <= mean]
    load = Load(
        steady_nodes=sum(low) / len(low) if low else mean,
        peak_nodes=sum(high) / len(high) if high else mean,
        peak_hours_per_month=len(high) / len(hours) * HOURS_PER_MONTH,
        egress_gb_per_month=plan.load.egress_gb_per_month,
    )
    return priced(plan.model_copy(update={"load": load}), pools)


def priced(plan: Plan, pools: Mapping[str, Pool]) -> Plan:
    """`plan` with the prices of the configured pools where it still has the defaults.

    The packaged pool, a workstation without a GPU, is no match for the plan's cloud node.
    """
    standard = Plan()
    if pools == default_pools():
        return plan
    changes: dict[str, object] = {}
    own = next((pool for pool in pools.values() if isinstance(pool, OwnPool)), None)
    if own is not None and plan.own == standard.own:
        changes["own"] = plan.own.model_copy(
            update={
                "capex_usd": float(own.capex_usd),
                "amortize_months": own.amortize_months,
                "power_w": own.power_w,
                "idle_power_w": min(plan.own.idle_power_w, own.power_w / 2),
                "usd_per_kwh": float(own.usd_per_kwh),
                "pue": own.pue,
                "people_hours_per_month": own.people_hours_per_month,
                "space_usd_per_node_month": float(own.space_usd_per_month) / own.nodes,
                "network_usd_per_month": float(own.network_usd_per_month),
            }
        )
        changes["usd_per_person_hour"] = float(own.usd_per_person_hour)
    if plan.cloud == standard.cloud:
        cloud = {}
        for market, key in (("ondemand", "ondemand_usd_per_hour"), ("spot", "spot_usd_per_hour")):
            rented = [
                pool.nusd_per_hour / NANO
                for pool in pools.values()
                if isinstance(pool, RentedPool) and pool.market == market
            ]
            if rented:
                cloud[key] = min(rented)
        changes["cloud"] = plan.cloud.model_copy(update=cloud)
    return plan.model_copy(update=changes)

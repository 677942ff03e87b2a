"""From looks at spot zones to a record that the spot policy can learn from. Pure.

    seen(nodes, pools, now, since)                       # what the node meter sees of the zones
    watch(observations, first, now, tick_s, pool)        # the same as a `Watch`, on a grid
    states(observations, now)                            # the same for people

Nobody asks all zones all the time: between two looks the older one holds. A zone that was out when
it was last asked counts as up again `STALE` later, since only asking can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from factory.cluster.nodehours import Node
from factory.cluster.spot.availability import Watch
from factory.config import Pool
from factory.ledger.zones import Observation

STALE = timedelta(minutes=30)
"""The provider leaves a node type that is out alone for this long at most."""
ENOUGH = timedelta(days=1)
"""A shorter record says nothing about tomorrow."""
LONGEST = timedelta(days=28)
"""Older looks are not learned from."""
WEEK = timedelta(days=7)


def seen(
    nodes: Iterable[Node], pools: Mapping[str, Pool], now: datetime, since: datetime
) -> list[Observation]:
    """What the nodes tell of spot zones: one that runs is up, one taken since `since` down."""
    up: dict[tuple[str, str], datetime] = {}
    lost: dict[tuple[str, str], datetime] = {}
    for node in nodes:
        pool = pools.get(node.pool)
        if pool is None or pool.market != "spot":
            continue
        place = (node.pool, node.zone or node.pool)
        if node.alive:
            up[place] = now
        elif node.taken and node.ended is not None and node.ended > since:
            lost[place] = max(node.ended, lost.get(place, node.ended))
    return [
        Observation(
            at=at, pool=pool, zone=zone, up=there, source="running" if there else "reclaimed"
        )
        for there, found in ((True, up), (False, lost))
        for (pool, zone), at in sorted(found.items())
        if there or (pool, zone) not in up
    ]


@dataclass(frozen=True, slots=True)
class ZoneState:
    """How one spot zone stands, and how it did."""

    pool: str
    zone: str
    up: bool
    since: datetime
    """Of the first look that said so."""
    seen_at: datetime
    source: str
    share: float
    """Part of the time since `WEEK` ago, or since the first look, in which it was up."""
    nusd_per_hour: int | None


def states(looks: Iterable[Observation], now: datetime) -> list[ZoneState]:
    """Every zone as it was last seen; between two looks the older one holds."""
    by_zone: dict[tuple[str, str], list[Observation]] = {}
    for look in looks:
        if look.at <= now:
            by_zone.setdefault((look.pool, look.zone), []).append(look)
    found = []
    for (pool, zone), of_zone in sorted(by_zone.items()):
        last = of_zone[-1]
        since = last.at
        for look in reversed(of_zone):
            if look.up != last.up:
                break
            since = look.at
        begin = max(of_zone[0].at, now - WEEK)
        ends = [*(look.at for look in of_zone[1:]), now]
        up_s = sum(
            max(0.0, (end - max(look.at, begin)).total_seconds())
            for look, end in zip(of_zone, ends, strict=True)
            if look.up
        )
        whole_s = (now - begin).total_seconds()
        share = up_s / whole_s if whole_s > 0 else float(last.up)
        price = next((x.nusd_per_hour for x in reversed(of_zone) if x.nusd_per_hour), None)
        found.append(ZoneState(pool, zone, last.up, since, last.at, last.source, share, price))
    return found


def watch(
    looks: Sequence[Observation], first: datetime, now: datetime, tick_s: float, pool: Pool
) -> Watch:
    """The record from `first` to `now` on a grid of ticks; the last tick is the present one.

    A zone counts, before anybody looked at it, as it was when first seen. Raises `ValueError` when
    there is no look.
    """
    by_zone: dict[str, list[Observation]] = {}
    for look in looks:
        if look.at <= now:
            by_zone.setdefault(look.zone, []).append(look)
    if not by_zone:
        raise ValueError(f"nothing has been seen of the zones of a pool until {now.isoformat()}")
    ticks = max(1, int((now - first).total_seconds() / tick_s) + 1)
    ends = first.timestamp() + (np.arange(ticks) + 1) * tick_s
    up = {}
    for zone, of_zone in by_zone.items():
        at = np.array([look.at.timestamp() for look in of_zone])
        states = np.array([look.up for look in of_zone], dtype=np.int8)
        series = states[np.maximum(np.searchsorted(at, ends, side="left") - 1, 0)]
        series[ends - tick_s >= (of_zone[-1].at + STALE).timestamp()] = 1
        up[zone] = series
    start = first.astimezone(UTC)
    hour = start.hour + start.minute / 60 + start.second / 3600
    return Watch(tick_s, hour, up, dict.fromkeys(up, pool.region or ""))

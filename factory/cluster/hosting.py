"""Which pools may hold what is served: never spot where users wait, nor where its data may not be.

    hosting = hosts(settings.pools, {"production"}, {"restricted"})
    hosting.selector      # {"factory/pool": "in(onprem,ondemand)"}; empty when every pool may

`placement.place` chooses the cheapest pool for a piece of work; a served model is instead kept off
the pools it must not be in, and Ray packs it on the nodes that are there, own ones first because
they always are. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from factory.cluster.placement import PlacementError
from factory.config import CLASSES, POOL_LABEL, Pool, Residency, WorkClass


@dataclass(frozen=True, slots=True)
class Hosting:
    """Where it may be, and why not elsewhere."""

    pools: tuple[str, ...]
    reasons: tuple[str, ...]
    """One sentence for each pool that may not hold it."""

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector."""
        return {POOL_LABEL: f"in({','.join(self.pools)})"} if self.reasons else {}


def hosts(
    pools: Mapping[str, Pool], classes: Iterable[WorkClass], sensitivities: Iterable[Residency]
) -> Hosting:
    """Where something may be that serves endpoints of these classes and sensitivities.

    It is held to the strictest of them; without any it counts as `internal`.
    Raises `PlacementError` when no pool may hold it.
    """
    strictest = min({*classes} or {"internal"}, key=CLASSES.index)
    data = {*sensitivities} or {"internal"}
    allowed, against = [], []
    for name, pool in pools.items():
        missing = sorted(data - {*pool.residency})
        if strictest == "production" and pool.market == "spot":
            against.append(f"{name}: spot nodes may be taken away while users wait")
        elif strictest not in pool.classes:
            against.append(f"{name}: is not for {strictest} work")
        elif missing:
            against.append(f"{name}: may not have {missing[0]} data")
        else:
            allowed.append(name)
    if not allowed:
        raise PlacementError(
            f"no pool may serve {strictest} endpoints with {', '.join(sorted(data))} data: "
            f"{'; '.join(against)}"
        )
    return Hosting(tuple(allowed), tuple(against))

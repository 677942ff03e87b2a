"""What each pool has now: sizes of its nodes and how many are free, from Ray when it runs.

capacity = Capacity.now(settings)
capacity.free["onprem"], capacity.sizes["onprem"]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from factory.cluster import local
from factory.cluster.meter import seen
from factory.cluster.nodehours import Node
from factory.config import OwnPool, Pool, Settings


@dataclass(frozen=True)
class Capacity:
    """By pool."""

    free: Mapping[str, int]
    """Nodes that can be had: idle ones, and for rented pools those not rented yet."""
    sizes: Mapping[str, tuple[float, float, float]]
    """CPUs, GPUs and GiB of a node, where Ray or this machine tells."""

    @classmethod
    def now(cls, settings: Settings) -> Capacity:
        """Ask the running cluster; without one every node is free."""
        cluster = local.current(settings)
        nodes = [] if cluster is None else seen(cluster, settings.pools)
        return capacity(settings.pools, nodes, _here())


def capacity(
    pools: Mapping[str, Pool], nodes: Iterable[Node], here: tuple[float, float, float]
) -> Capacity:
    """Free nodes and sizes of `pools`. `here`: the machine, for a pool of one that names no size.

    Ray packs by resources, so a node counts as free while most of it is.
    """
    free, sizes = {}, {}
    alive = [node for node in nodes if node.alive]
    for name, pool in pools.items():
        mine = [node for node in alive if node.pool == name]
        idle = sum(node.held_share < 0.5 for node in mine)
        free[name] = pool.max_nodes - len(mine) + idle
        if mine:
            sizes[name] = (
                max(node.cpus for node in mine),
                max(node.gpus for node in mine),
                max(node.memory_gib for node in mine),
            )
        elif isinstance(pool, OwnPool) and pool.nodes == 1:
            sizes[name] = here
    return Capacity(free, sizes)


def _here() -> tuple[float, float, float]:
    gib = psutil.virtual_memory().total / 2**30
    return float(os.cpu_count() or 1), 0.0, gib

"""In which order a deployment replaces what runs, so that production keeps its floor: pure.

    order = rollover(wanted, {"factory:engine-smol:1f…"}, [Room(cpus=1.2, …)], gateway)
    order.beside      # started before anything is switched, because there is room for them
    order.after       # started when the old have gone
    order.stale       # the old

Every version of an engine is a Serve application of its own, so that no request is ever answered by
another version than the one it names. The gateway is switched from the old to the new at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

GATEWAY_CPUS = 0.1
"""CPU share that Ray reserves for a gateway replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An application that is wanted: one version of an engine or embedder."""

    name: str
    """Of the application; changes with the version."""
    deployment: str
    """Of its deployment; stays."""
    floor: int = 0
    """Replicas that are there while nobody asks."""
    replicas: int = 1
    """Replicas to start with: as many as the version before has, where that is above the floor."""
    cpus: float = 0.0
    """What a replica reserves."""
    gpus: float = 0.0
    """What a replica reserves."""
    memory: float = 0.0
    """Bytes that a replica will take."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector of the nodes that may hold it: `VALUE` or `in(VALUE,…)` by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is free on one node."""

    cpus: float
    gpus: float = 0.0
    memory: float = float("inf")
    """Bytes; infinite where it is not known."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The node's."""

    def holds(self, part: Part) -> bool:
        """Whether a replica of `part` fits."""
        slack = 1e-6
        return (
            part.cpus <= self.cpus + slack
            and part.gpus <= self.gpus + slack
            and part.memory <= self.memory
            and all(self.labels.get(name) in _among(wish) for name, wish in part.nodes.items())
        )

    def less(self, part: Part) -> Room:
        """What is left beside a replica of `part`."""
        return replace(
            self,
            cpus=self.cpus - part.cpus,
            gpus=self.gpus - part.gpus,
            memory=self.memory - part.memory,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """The order; names are applications."""

    kept: tuple[str, ...] = ()
    """Run already in the wanted version: only bounds and adapters may change."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """Start with so many replicas, and answer, before the gateway is switched."""
    after: Mapping[str, int] = field(default_factory=dict)
    """Start when the stale ones have gone; their requests wait meanwhile."""
    stale: tuple[str, ...] = ()
    """Go once nobody asks them any more."""
    reasons: tuple[str, ...] = ()
    """Why something must wait."""


def rollover(
    wanted: Sequence[Part], running: Collection[str], rooms: Sequence[Room], gateway: Part
) -> Rollover:
    """The order in which `wanted` replaces what is `running`, given what is free on each node.

    Room is given to what has a floor first, then in order of names; the successors of the `gateway`
    have theirs before. What has no room for all its replicas starts with its floor.
    """
    kept = tuple(part.name for part in wanted if part.name in running)
    fresh = [part for part in wanted if part.name not in running]
    stale = tuple(sorted(set(running) - {part.name for part in wanted}))
    left = list(rooms)
    _place(left, gateway)
    beside: dict[str, int] = {}
    after: dict[str, int] = {}
    reasons = []
    for part in sorted(fresh, key=lambda one: (-one.floor, one.name)):
        least = replace(part, replicas=max(1, part.floor))
        most = replace(part, replicas=max(least.replicas, part.replicas))
        placed = next((one for one in (most, least) if _place(left, one)), None)
        if placed is not None:
            beside[part.name] = placed.replicas
        else:
            after[part.name] = most.replicas
            reasons.append(
                f"{part.deployment}: no node has {_amount(least)} free beside what runs, so its "
                "requests wait while the new version starts"
            )
    return Rollover(kept=kept, beside=beside, after=after, stale=stale, reasons=tuple(reasons))


def _place(rooms: list[Room], part: Part) -> bool:
    """Take the room of all its replicas from `rooms`, each from the first node that has it."""
    left = list(rooms)
    for _ in range(part.replicas):
        fitting = next((place for place, room in enumerate(left) if room.holds(part)), None)
        if fitting is None:
            return False
        left[fitting] = left[fitting].less(part)
    rooms[:] = left
    return True


def _among(wish: str) -> list[str]:
    """The values that one condition of a label selector allows."""
    return wish.removeprefix("in(").removesuffix(")").split(",")


def _amount(part: Part) -> str:
    amounts = [f"{part.cpus:g} CPUs"]
    if part.gpus:
        amounts.append(f"{part.gpus:g} GPUs")
    if part.memory:
        amounts.append(f"{part.memory / 1e9:.1f} GB")
    each = " and ".join((", ".join(amounts[:-1]), amounts[-1])) if amounts[1:] else amounts[0]
    return each if part.replicas == 1 else f"{each} for each of {part.replicas} replicas"

"""Who gets how much of a shared budget of GPUs or cores: a pure function.

    grants = arbitrate([Claim(name="chat", wanted=6, unit=1, class_="production"), …], budget=8)
    grants["chat"].replicas, grants["chat"].reasons

Classes are served in order: what production wants comes before anything of internal, and that
before batch, so nothing of a lower class can hold what a higher one needs. Inside a class the
floors come first. The rest goes replica by replica to whoever has the least for its priority
(weighted max-min fairness), so one noisy endpoint cannot crowd out its peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.config import EndpointClass
from factory.scaling.target import CLASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one deployment asks for."""

    name: str
    wanted: int
    """Replicas that its policy wants."""
    floor: int = 0
    """Replicas among them that it keeps while nobody asks."""
    unit: float = 1.0
    """GPUs or cores of one replica."""
    class_: EndpointClass = "internal"
    priority: int = 1
    """Weight among claims of its class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What it may have."""

    replicas: int
    reasons: tuple[str, ...] = ()
    """Why it is less than wanted; empty when it is not."""


def arbitrate(claims: Sequence[Claim], *, budget: float) -> dict[str, Grant]:
    """Replicas by claim. Raises `ValueError` for a claim without a name of its own or a cost."""
    if len({one.name for one in claims}) < len(claims):
        raise ValueError("two claims have the same name")
    if wrong := [one.name for one in claims if one.unit <= 0 or one.priority <= 0]:
        raise ValueError(f"the claim '{wrong[0]}' needs a unit and a priority above 0")
    given = {one.name: 0 for one in claims}
    left = budget
    for class_ in CLASSES:
        peers = sorted((one for one in claims if one.class_ == class_), key=lambda one: one.name)
        for limit in ("floor", "wanted"):
            left = _fill(peers, given, left, limit)
    return {one.name: _grant(one, given, claims, budget) for one in claims}


def _fill(peers: Sequence[Claim], given: dict[str, int], left: float, limit: str) -> float:
    """Give replicas one by one up to each claim's `limit`; what is left of the budget."""

    def fits(one: Claim) -> bool:
        most = min(one.floor, one.wanted) if limit == "floor" else one.wanted
        return given[one.name] < most and one.unit <= left + 1e-9

    while hungry := [one for one in peers if fits(one)]:
        least = min(hungry, key=lambda one: (given[one.name] + 1) * one.unit / one.priority)
        given[least.name] += 1
        left -= least.unit
    return left


def _grant(claim: Claim, given: dict[str, int], claims: Sequence[Claim], budget: float) -> Grant:
    replicas = given[claim.name]
    if replicas >= claim.wanted:
        return Grant(replicas=replicas)
    rank = CLASSES.index(claim.class_)
    above = sum(given[one.name] * one.unit for one in claims if CLASSES.index(one.class_) < rank)
    beside = sum(
        given[one.name] * one.unit
        for one in claims
        if one.class_ == claim.class_ and one.name != claim.name
    )
    return Grant(
        replicas=replicas,
        reasons=(
            f"{claim.wanted} are wanted, the shared budget of {budget:g} allows {replicas}: higher "
            f"classes hold {above:g}, others of class {claim.class_} {beside:g}",
        ),
    )

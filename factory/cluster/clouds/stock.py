"""What a cloud cannot give right now: noticed, left alone for a while, then asked again. Pure.

    shelf = shelf.failed("spot-small", "stock-out", now)     # cools down, longer each time
    shelf.cooling(now)                                       # {"spot-small"}
    shelf = shelf.launched("spot-small", now)                # all is well again

Ray's autoscaler asks the same node type for ever, however often its cloud says no. A type that
cools down is capped at what it has, so that Ray's own scheduler goes to the next one that the
work's labels allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Trouble = Literal["stock-out", "quota", "throttled", "error"]
_KNOWN: tuple[tuple[Trouble, re.Pattern[str]], ...] = (
    (
        "stock-out",
        re.compile(
            r"InsufficientInstanceCapacity|InsufficientHostCapacity|SpotMaxPriceTooLow|"
            r"ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources|STOCKOUT|"
            r"UnfulfillableCapacity|no host is free",
            re.IGNORECASE,
        ),
    ),
    (
        "quota",
        re.compile(
            r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|QUOTA_EXCEEDED|"
            r"quotaExceeded",
            re.IGNORECASE,
        ),
    ),
    ("throttled", re.compile(r"RequestLimitExceeded|Throttling|rateLimitExceeded", re.IGNORECASE)),
)


def classify(error: BaseException) -> Trouble:
    """What kind of no it is, from the words of AWS, GCP and Ray."""
    words: list[str] = []
    at: BaseException | None = error
    while at is not None and len(words) < 10:
        words.append(f"{type(at).__name__} {at}")
        at = at.__cause__ or at.__context__
    text = " ".join(words)
    return next((kind for kind, pattern in _KNOWN if pattern.search(text)), "error")


@dataclass(frozen=True, slots=True)
class Failing:
    """A node type that could not be had."""

    trouble: Trouble
    failures: int
    """In a row."""
    since: float
    until: float
    """When to ask again; seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """All node types that could not be had."""

    first_s: float = 60.0
    """Length of the first cool-down; it doubles."""
    longest_s: float = 1800.0
    failing: Mapping[str, Failing] = field(default_factory=dict)

    def failed(self, node_type: str, trouble: Trouble, now: float) -> Shelf:
        """A launch failed. What arrives while it cools down already changes nothing."""
        before = self.failing.get(node_type)
        if before is not None and before.since <= now < before.until:
            return self
        failures = 1 if before is None else before.failures + 1
        wait = min(self.first_s * 2 ** min(failures - 1, 30), self.longest_s)
        found = Failing(trouble, failures, now, now + wait)
        return Shelf(self.first_s, self.longest_s, {**self.failing, node_type: found})

    def launched(self, node_type: str) -> Shelf:
        """A launch worked."""
        rest = {name: each for name, each in self.failing.items() if name != node_type}
        return Shelf(self.first_s, self.longest_s, rest)

    def cooling(self, now: float) -> frozenset[str]:
        """The node types to leave alone. A clock that was set back ends a cool-down early."""
        return frozenset(
            name for name, each in self.failing.items() if each.since <= now < each.until
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            name: {"trouble": e.trouble, "failures": e.failures, "since": e.since, "until": e.until}
            for name, e in self.failing.items()
        }

    def with_failing(self, plain: Mapping[str, Any]) -> Shelf:
        """What `as_dict` gave; raises `KeyError`, `TypeError` for anything else."""
        found = {
            name: Failing(each["trouble"], each["failures"], each["since"], each["until"])
            for name, each in plain.items()
        }
        return Shelf(self.first_s, self.longest_s, found)

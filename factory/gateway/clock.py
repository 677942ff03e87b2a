"""Time as the gateway sees it, passed in so that tests can hold it still."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time and a monotonic counter."""

    now: Callable[[], datetime] = _utc_now
    """The current time, in UTC."""
    monotonic: Callable[[], float] = time.perf_counter
    """Seconds from an arbitrary start, never going back."""

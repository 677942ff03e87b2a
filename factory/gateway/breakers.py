"""The circuit breakers of one gateway process, one a model: who is left alone for now.

breakers.why_not(served)    # "circuit open: the model failed too often ...", or ""
breakers.failed(served)
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from factory.config import Breaker as Limits
from factory.gateway.served import Served
from factory.routing.breaker import Breaker, allow, failed, succeeded

_log = logging.getLogger(__name__)
_CLOSED = Breaker()


class Breakers:
    """States by model, driven by the pure functions of `factory.routing.breaker`."""

    def __init__(self, limits: Limits, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._states: dict[str, Breaker] = {}

    def why_not(self, served: Served) -> str:
        """Why the model is not asked now; empty when it may be, also for a single trial."""
        state = self._states.get(served.label)
        if state is None:
            return ""
        if state.state == "closed" or self._monotonic() >= state.until:
            return ""
        return allow(state, self._monotonic(), self._limits).reasons[0]

    def begin(self, served: Served) -> str:
        """Before an attempt: why it may not be made. A trial goes to the one that asks first."""
        state = self._states.get(served.label)
        if state is None:
            return ""
        allowed = allow(state, self._monotonic(), self._limits)
        self._states[served.label] = allowed.state
        return "" if allowed.ok else allowed.reasons[0]

    def succeeded(self, served: Served) -> None:
        """The model answered."""
        state = self._states.pop(served.label, _CLOSED)
        for reason in succeeded(state).reasons:
            _log.warning("%s: %s", served.label, reason)

    def failed(self, served: Served) -> None:
        """The model failed, by its own fault."""
        state = self._states.get(served.label, _CLOSED)
        change = failed(state, self._monotonic(), self._limits)
        self._states[served.label] = change.state
        for reason in change.reasons:
            _log.warning("%s: %s", served.label, reason)

"""What was learned and calibrated for each endpoint, in force as soon as it is in the ledger.

    learning = Learning(settings, ledger, store, clock)
    learned = learning.of(call)      # estimate and thresholds
    learning.sample(journey, call)   # what a router can learn from this request

A calibration speaks of certain model versions: after a promotion it is disregarded until it is made
again, and the configured rules hold instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.gateway.call import Call
from factory.gateway.clock import Clock
from factory.gateway.journey import Journey
from factory.gateway.served import Served
from factory.ledger import calibrations
from factory.ledger.calibrations import Calibration
from factory.ledger.errors import LedgerError
from factory.ledger.samples import Attempt, Sample
from factory.ledger.store import Ledger
from factory.routing import fitted
from factory.routing.calibration import outdated, subject
from factory.routing.errors import RoutingError
from factory.routing.estimate import Estimate
from factory.routing.fitted import Deep
from factory.routing.learned import Router
from factory.routing.threshold import Threshold

_log = logging.getLogger(__name__)

FRESH_S = 30.0
"""Seconds for which what was read is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What holds for one request."""

    confidence_threshold: float
    """An open model's answer whose confidence is lower asks for the next tier; as configured."""
    calibrated: tuple[int, float] | None = None
    """A tier, and the threshold that was calibrated on its answers and says nothing of others'."""
    estimate: Estimate | None = None
    """What the router thinks of the prompt; None without one."""
    deep: Deep | None = None
    """The router that sees an encoder's vector too; None without one."""
    router_threshold: float | None = None
    """How much more a higher tier must promise; None without a calibration that holds."""

    def threshold(self, tier: int) -> float:
        """The confidence from which on an answer of this tier is sent."""
        if self.calibrated is not None and self.calibrated[0] == tier:
            return self.calibrated[1]
        return self.confidence_threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the ledger and the object store have for one endpoint."""

    confidence: Calibration | None = None
    router: Calibration | None = None
    fitted: Router | None = None
    deep: Deep | None = None
    hash: str = ""


class Learning:
    """The routers and thresholds of one gateway process."""

    def __init__(
        self, settings: Settings, ledger: Ledger, store: ObjectStore, clock: Clock
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def of(self, call: Call) -> Learned:
        """What holds for a call; never waits, so a new calibration counts a little later."""
        self._refresh()
        routing = self._settings.routing
        known = self._known.get(call.name, _Known())
        now = subject(_versions(call.served))
        sure = _value(known.confidence, now)
        calibrated = None
        if known.confidence is not None and sure is not None:
            calibrated = int(known.confidence.detail["tier"]), sure
        threshold = _value(known.router, now) if routing.learned else None
        estimate = None if threshold is None else _estimate(known.fitted, call)
        return Learned(
            confidence_threshold=routing.confidence_threshold,
            calibrated=calibrated,
            estimate=estimate,
            deep=None if estimate is None else known.deep,
            router_threshold=threshold,
        )

    def sample(self, journey: Journey, call: Call) -> Sample | None:
        """What a router can learn from a finished request; None where nothing is collected."""
        if not self._settings.routing.collect or not call.embedding:
            return None
        vector = np.frombuffer(call.embedding, dtype="<f4").astype("<f2")
        attempts = [
            Attempt(
                tier=charge.tier,
                model=charge.model or "",
                accepted=charge.tier == journey.tier,
                cost_nusd=charge.cost_nusd,
                confidence=journey.confidences.get(charge.tier),
            )
            for charge in journey.charges
            if charge.kind == "generation" and charge.tier is not None
        ]
        return Sample(
            request_id=journey.request_id,
            created_at=journey.created_at,
            endpoint=call.name,
            embedding=vector.tobytes(),
            attempts=attempts,
        )

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._read_at < FRESH_S or (self._reading and not self._reading.done()):
            return
        self._read_at = now
        self._reading = asyncio.create_task(asyncio.to_thread(self.read))

    def read(self) -> None:
        """Read what is in force now; what cannot be read stays as it was."""
        for name, endpoint in self._settings.endpoints.items():
            if endpoint.task != "generate":
                continue
            try:
                self._known[name] = self._newest(name, self._known.get(name, _Known()))
            except (LedgerError, RoutingError, CatalogError) as error:
                _log.warning("what was learned for %s is not read anew: %s", name, error)

    def _newest(self, name: str, before: _Known) -> _Known:
        confidence = calibrations.newest(self._ledger, "confidence", name)
        calibrated = calibrations.newest(self._ledger, "router", name)
        stored = self._store.find(fitted.KIND, name) if calibrated else None
        if calibrated is None or stored is None or stored.hash != calibrated.detail["router"]:
            return _Known(confidence=confidence)
        if before.hash == stored.hash:
            return replace(before, confidence=confidence, router=calibrated)
        found = fitted.read(stored)
        deep = found.deep if calibrated.detail.get("encoder") else None
        return _Known(
            confidence=confidence,
            router=calibrated,
            fitted=found.router,
            deep=deep,
            hash=stored.hash,
        )


def _versions(served: Mapping[int, Served]) -> dict[str, str]:
    return {str(tier): f"{one.model}@{one.version}" for tier, one in served.items()}


def _value(calibration: Calibration | None, now: str) -> float | None:
    """The threshold, while it speaks of the models that are served now."""
    if calibration is None or outdated(calibration.subject, now):
        return None
    return Threshold.parse(calibration.detail["threshold"]).value


def _estimate(router: Router | None, call: Call) -> Estimate | None:
    question = call.request.last_question
    if router is None or question is None or not call.embedding:
        return None
    vector = np.frombuffer(call.embedding, dtype="<f4")
    return router.predict(question, vector) if len(vector) == router.meta.dimensions else None

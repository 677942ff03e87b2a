"""The calibrated thresholds in force, read from the ledger now and then, asked without waiting.

    thresholds = Thresholds(embedder.hash)
    thresholds.refresh(ledger, ["support/helpdesk"])       # in a thread, at start and now and then
    thresholds("support/helpdesk")                         # 0.93, or None: off

A calibration holds for the embedder, the rules and the weights it was made with: after a change of
any the scope is off until it is calibrated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from typing import Final

from factory.gateway.semantic.calibrate import Calibration
from factory.ledger import calibrations
from factory.ledger.store import Ledger

KIND: Final = "semantic"
"""The kind of these calibrations in the ledger."""

_PARTS = (
    *("weights.json", "lexicon.json", "words.txt"),
    *("asking.py", "differences.py", "lexicon.py", "reading.py", "score.py"),
    "voice.py",
)


def scope_of(team: str, endpoint: str) -> str:
    """The name of one team's cache at one endpoint."""
    return f"{team}/{endpoint}"


def subject_of(embedder_hash: str) -> str:
    """What a calibration holds for: the embedder, and all that makes a score, as one hash."""
    digest = hashlib.sha256(embedder_hash.encode())
    for name in _PARTS:
        digest.update(resources.files("factory.gateway.semantic").joinpath(name).read_bytes())
    return digest.hexdigest()


def save(
    ledger: Ledger, scope: str, embedder_hash: str, found: Calibration, now: datetime
) -> calibrations.Calibration:
    """Keep a calibration; the newest of a scope is the one in force, also when it says off."""
    return calibrations.save(
        ledger,
        calibrations.Calibration(
            kind=KIND,
            scope=scope,
            subject=subject_of(embedder_hash),
            detail={**asdict(found), "reasons": list(found.reasons)},
            created_at=now,
        ),
    )


class Thresholds:
    """Thresholds by scope; a scope that was not refreshed, or not calibrated, has None."""

    def __init__(self, embedder_hash: str) -> None:
        """Only calibrations made with this embedder count."""
        self._subject = subject_of(embedder_hash)
        self._known: dict[str, float | None] = {}

    def __call__(self, scope: str) -> float | None:
        """The threshold in force, or None where the cache is off."""
        return self._known.get(scope)

    def refresh(self, ledger: Ledger, scopes: Iterable[str]) -> None:
        """Read the newest calibration of each scope. Raises `LedgerError`."""
        for scope in scopes:
            self._known[scope] = self.read(ledger, scope)

    def read(self, ledger: Ledger, scope: str) -> float | None:
        """The threshold of one scope as the ledger has it now."""
        found = calibrations.newest(ledger, KIND, scope)
        if found is None or not found.holds_for(self._subject):
            return None
        threshold = found.detail.get("threshold")
        return float(threshold) if threshold is not None else None

"""Calibrations: appended, sealed, the newest of a kind and scope holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from factory.ledger import audit
from factory.ledger.calibrations import Calibration, newest, save
from factory.ledger.errors import LedgerError
from factory.ledger.store import Ledger
from factory.ledger.verification import verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def calibration(**more: Any) -> Calibration:
    given = {
        "kind": "semantic",
        "scope": "support/helpdesk",
        "subject": "smollm2@3",
        "detail": {"threshold": 0.93, "pairs": 812},
        "created_at": NOON,
    }
    return Calibration(**(given | more))


def test_the_newest_of_a_kind_and_scope_holds(ledger: Ledger) -> None:
    assert newest(ledger, "semantic", "support/helpdesk") is None
    save(ledger, calibration())
    last = save(ledger, calibration(detail={"threshold": 0.95}), actor="ana")
    save(ledger, calibration(kind="router"))
    save(ledger, calibration(scope="other"))
    found = newest(ledger, "semantic", "support/helpdesk")
    assert found == last
    assert found is not None
    assert found.detail == {"threshold": 0.95}
    assert found.holds_for("smollm2@3")
    assert not found.holds_for("smollm2@4")


def test_each_is_sealed_with_a_fingerprint(ledger: Ledger) -> None:
    saved = save(ledger, calibration(), actor="ana")
    (sealed,) = audit.events(ledger, action="calibration")
    assert (sealed.actor, sealed.action) == ("ana", "calibration.semantic")
    assert sealed.detail["id"] == saved.id
    assert sealed.detail["digest"] == saved.digest
    assert verify(ledger).ok


def test_none_is_changed_or_saved_twice(ledger: Ledger) -> None:
    saved = save(ledger, calibration())
    with pytest.raises(LedgerError, match="saved already"):
        save(ledger, saved)
    for change in ("UPDATE calibrations SET scope = 'x'", "DELETE FROM calibrations"):
        with pytest.raises(LedgerError, match="append-only"), ledger.write() as connection:
            connection.execute(text(change))


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "guess"},
        {"scope": ""},
        {"subject": "a\0"},
        {"detail": [1]},
        {"detail": {"x": float("inf")}},
        {"created_at": datetime(2026, 1, 1)},
    ],
)
def test_one_that_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        calibration(**more)

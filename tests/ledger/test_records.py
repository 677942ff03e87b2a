"""Values that make no sense are refused when they are made, text is made storable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from factory.ledger.errors import LedgerError
from factory.ledger.money import per_thousand, usd
from factory.ledger.records import Promotion, check_entry
from factory.ledger.store import Entry

MakeEntry = Callable[..., Entry]
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cost_nusd", 1.0),
        ("cost_nusd", -1),
        ("cost_nusd", 2**63),
        ("cost_nusd", True),
        ("prompt_tokens", 1.5),
        ("latency_ms", float("nan")),
        ("confidence", float("inf")),
        ("created_at", datetime(2026, 11, 23)),
        ("status", "fine"),
        ("cache", "maybe"),
        ("request_id", ""),
        ("request_id", "x" * 201),
        ("request_id", "nul\0"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(entry: MakeEntry, field: str, value: Any) -> None:
    with pytest.raises(LedgerError, match=field):
        replace(entry("r1")[0], **{field: value})


def test_text_no_database_could_hold_is_escaped_and_bounded(entry: MakeEntry) -> None:
    request, _ = entry(
        "r1", endpoint="no\0such\ud800" + "x" * 1_000, error="e" * 9_000, reasons=["\udfff"]
    )
    assert request.endpoint.startswith("no\\x00such\\ud800")
    assert len(request.endpoint) == 200
    assert request.error is not None
    assert len(request.error) == 4_000
    assert request.reasons == ("\\udfff",)
    assert replace(request) == request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_id": "r2"}, "does not belong"),
        ({"seq": 5}, "numbered"),
        ({"team": "research"}, "own team and endpoint"),
        ({"cost_nusd": 1}, "add up to"),
    ],
)
def test_charges_must_fit_their_request(
    entry: MakeEntry, change: dict[str, Any], message: str
) -> None:
    request, charges = entry("r1", (5, 7))
    check_entry(request, charges)
    with pytest.raises(LedgerError, match=message):
        check_entry(request, [replace(charges[0], **change), charges[1]])


def test_metrics_must_be_plain_json() -> None:
    with pytest.raises(LedgerError, match="metrics"):
        Promotion(
            created_at=NOON, name="h", action="refuse", version=1, metrics={"x": float("nan")}
        )


@pytest.mark.parametrize(
    ("nusd", "text"),
    [
        (0, "0.000000000"),
        (1, "0.000000001"),
        (-1_500_000_000, "-1.500000000"),
        (2**63, "9223372036.854775808"),
    ],
)
def test_dollars_are_exact(nusd: int, text: str) -> None:
    assert usd(nusd) == text


def test_cost_of_a_thousand_is_rounded_to_the_nearest_nano_dollar() -> None:
    assert per_thousand(1, 3) == 333
    assert per_thousand(2, 3) == 667
    assert per_thousand(1, 2_000) == 1
    assert per_thousand(5, 0) is None

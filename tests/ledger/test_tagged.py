"""Costs by the metadata that clients send, in both databases; sealed like everything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from factory.ledger.audit import of_request
from factory.ledger.errors import LedgerError
from factory.ledger.store import Entry, Ledger
from factory.ledger.tagged import by_tag
from factory.ledger.verification import verify

Make = Callable[..., Entry]


def test_costs_are_added_up_by_the_value_of_a_key(ledger: Ledger, entry: Make) -> None:
    ledger.record(*entry("r1", (10,), tags={"project": "a b", "step": "1"}))
    ledger.record(*entry("r2", (30,), tags={"project": "ü"}))
    ledger.record(*entry("r3", (5,), tags={"project": "a b"}))
    ledger.record(*entry("r4", (1,)))
    found = by_tag(ledger, "project")
    assert [(line.value, line.requests, line.cost_nusd) for line in found] == [
        ("ü", 1, 30),
        ("a b", 2, 15),
        (None, 1, 1),
    ]
    assert [line.value for line in by_tag(ledger, "it's")] == [None]
    assert found[0].as_dict()["cost_usd"] == "0.000000030"
    with pytest.raises(LedgerError, match="quotation mark"):
        by_tag(ledger, 'a"b')


def test_tags_are_sealed(ledger: Ledger, entry: Make) -> None:
    tagged, plain = entry("r1", tags={"project": "a"}), entry("r1")
    ledger.record(*tagged)
    assert verify(ledger).ok
    assert ledger.request("r1") == tagged
    assert of_request(*tagged).detail["digest"] != of_request(*plain).detail["digest"]

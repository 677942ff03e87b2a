"""Recording and reading back: once, exactly, unchangeable."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text

from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.promotions import append, history
from factory.ledger.records import ChargeRecord, Promotion, RequestRecord
from factory.ledger.store import Entry, Ledger, open_ledger

MakeEntry = Callable[..., Entry]
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
STATEMENTS = {
    "update requests": "UPDATE requests SET team = 'other'",
    "delete requests": "DELETE FROM requests",
    "update charges": "UPDATE charges SET cost_nusd = 0",
    "delete charges": "DELETE FROM charges",
    "update promotions": "UPDATE promotions SET version = 9",
    "delete promotions": "DELETE FROM promotions",
}


def test_a_request_comes_back_as_it_was_recorded(ledger: Ledger, entry: MakeEntry) -> None:
    request, charges = entry(
        "r1",
        (1_200, 40_000),
        confidence=0.25,
        cache="miss",
        degraded=True,
        latency_ms=12.345678,
        model_version="3",
        error="upstream said 'no'\nand more \U0001f600",
    )
    ledger.record(request, charges)
    assert ledger.request("r1") == (request, charges)
    assert ledger.request("r2") is None


@pytest.mark.parametrize(
    ("cache", "kind"),
    [("hit", "cache"), ("semantic", "cache"), ("shared", "shared"), ("miss", "embedding")],
)
def test_every_way_to_answer_is_kept(
    ledger: Ledger, entry: MakeEntry, cache: str, kind: str
) -> None:
    request, charges = entry("r1", (0,), cache=cache)
    charges = [replace(charge, kind=kind, tier=0) for charge in charges]
    ledger.record(request, charges)
    assert ledger.request("r1") == (request, charges)


def test_money_is_exact_beyond_what_a_float_can_hold(ledger: Ledger, entry: MakeEntry) -> None:
    big = 2**53 + 1
    ledger.record(*entry("r1", (big,), top_tier_nusd=2**62 + 1))
    found = ledger.request("r1")
    assert found is not None
    assert (found[0].cost_nusd, found[1][0].cost_nusd) == (big, big)
    assert ledger.costs().saving_nusd == 2**62 + 1 - big


def test_the_same_again_is_no_news(ledger: Ledger, entry: MakeEntry) -> None:
    request, charges = entry("r1", (1, 2))
    ledger.record(request, charges)
    ledger.record(request, charges[::-1])
    ledger.record_many([(request, charges), (request, charges)])
    assert ledger.costs().total.cost_nusd == 3


def test_other_content_under_a_known_id_is_refused(ledger: Ledger, entry: MakeEntry) -> None:
    request, charges = entry("r1")
    ledger.record(request, charges)
    with pytest.raises(LedgerError, match="'r1' is already recorded with other content"):
        ledger.record(replace(request, team="support", latency_ms=9), charges)
    with pytest.raises(LedgerError, match="already recorded"):
        ledger.record(request, [replace(charges[0], reason="another")])
    assert ledger.request("r1") == (request, charges)


def test_many_are_recorded_together_or_not_at_all(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record(*entry("taken"))
    with pytest.raises(LedgerError):
        ledger.record_many([entry("a"), entry("taken", (7,)), entry("z")])
    assert ledger.request("a") is None
    assert ledger.request("z") is None


def test_a_charge_id_cannot_serve_two_requests(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record(*entry("r1"))
    request, charges = entry("r2")
    with pytest.raises(LedgerError):
        ledger.record(request, [replace(charges[0], charge_id="r1-0")])
    assert ledger.request("r2") is None


def test_more_than_one_statement_can_name_are_recorded(ledger: Ledger, entry: MakeEntry) -> None:
    entries = [entry(f"r{number}") for number in range(1_203)]
    ledger.record_many(entries)
    ledger.record_many(entries)
    assert ledger.costs().total.requests == 1_203


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_nothing_recorded_can_be_changed(ledger: Ledger, entry: MakeEntry, statement: str) -> None:
    request, charges = entry("r1")
    ledger.record(request, charges)
    decision = append(
        ledger, Promotion(created_at=NOON, name="helpdesk", action="promote", version=1)
    )
    with pytest.raises(LedgerError, match="append-only"), ledger.write() as connection:
        connection.execute(text(statement))
    assert ledger.request("r1") == (request, charges)
    assert history(ledger, "helpdesk") == [decision]


@pytest.mark.parametrize("table", ["requests", "charges", "promotions"])
def test_sqlite_replace_cannot_remove_rows(sqlite_url: str, entry: MakeEntry, table: str) -> None:
    ledger = open_ledger(sqlite_url)
    ledger.record(*entry("r1"))
    append(ledger, Promotion(created_at=NOON, name="helpdesk", action="promote", version=1))
    with pytest.raises(LedgerError, match="append-only"), ledger.write() as connection:
        connection.execute(text(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))
    ledger.close()


@pytest.mark.postgres
def test_postgresql_truncate_is_refused(postgres_url: str, entry: MakeEntry) -> None:
    ledger = open_ledger(postgres_url)
    ledger.record(*entry("r1"))
    with pytest.raises(LedgerError, match="append-only"), ledger.write() as connection:
        connection.execute(text("TRUNCATE charges"))
    ledger.close()


@pytest.mark.postgres
def test_a_lost_connection_is_replaced(postgres_url: str, entry: MakeEntry) -> None:
    ledger, other = open_ledger(postgres_url), open_ledger(postgres_url)
    ledger.record(*entry("r1"))
    with other.write() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    ledger.record(*entry("r2"))
    assert ledger.costs().total.requests == 2
    ledger.close()
    other.close()


def test_a_time_range_includes_its_start_and_not_its_end(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record_many([entry(f"r{minute}", minute=minute) for minute in (3, 1, 2)])
    since, until = NOON + timedelta(minutes=1), NOON + timedelta(minutes=3)
    assert [request.request_id for request in ledger.requests()] == ["r1", "r2", "r3"]
    assert [request.request_id for request in ledger.requests(since, until)] == ["r1", "r2"]
    assert [charge.request_id for charge in ledger.charges(since, until)] == ["r1", "r2"]
    east = timezone(timedelta(hours=9))
    assert len(list(ledger.requests(since.astimezone(east), until.astimezone(east)))) == 2


def test_time_is_kept_in_utc_to_the_microsecond(ledger: Ledger, entry: MakeEntry) -> None:
    local = datetime(2026, 3, 29, 2, 30, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))
    request, charges = entry("r1", created_at=local)
    ledger.record(request, charges)
    found = ledger.request("r1")
    assert found is not None
    assert found[0].created_at == local
    assert found[0].created_at.utcoffset() == timedelta(0)


def test_a_reader_does_not_stop_a_writer(ledger: Ledger, entry: MakeEntry) -> None:
    ledger.record_many([entry("r1"), entry("r2")])
    reading = ledger.requests()
    first = next(reading)
    ledger.record(*entry("r3"))
    assert [first.request_id, *(request.request_id for request in reading)] == ["r1", "r2"]


@pytest.mark.postgres
def test_a_database_that_went_away_is_unavailable(
    postgres_server: str, postgres_url: str, entry: MakeEntry
) -> None:
    ledger, other = (
        open_ledger(postgres_url),
        create_engine(
            make_url(postgres_server).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
        ),
    )
    ledger.ping()
    with other.connect() as connection:
        name = make_url(postgres_url).database
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        ledger.record(*entry("r1"))
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        ledger.ping()
    ledger.close()
    other.dispose()


texts = st.text(max_size=300)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    endpoint=texts,
    error=st.none() | texts,
    reasons=st.lists(texts, max_size=3),
    latency=st.floats(allow_nan=False, allow_infinity=False),
    cost=st.integers(0, 2**63 - 1),
    created_at=st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
)
def test_any_record_that_can_be_made_can_be_kept(
    ledger: Ledger,
    endpoint: str,
    error: str | None,
    reasons: list[str],
    latency: float,
    cost: int,
    created_at: datetime,
) -> None:
    name = uuid.uuid4().hex
    who = {"team": "support", "endpoint": endpoint, "created_at": created_at}
    request = RequestRecord(
        request_id=name,
        status="error",
        http_status=500,
        error=error,
        reasons=reasons,
        latency_ms=latency,
        cost_nusd=cost,
        **who,
    )
    charge = ChargeRecord(
        charge_id=name,
        request_id=name,
        seq=0,
        kind="generation",
        cost_nusd=cost,
        reason=error or "",
        **who,
    )
    ledger.record(request, [charge])
    assert ledger.request(name) == (request, [charge])

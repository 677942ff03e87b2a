"""The audit chain: whatever is done to it or to the rows it covers is found."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from factory.ledger import audit
from factory.ledger.audit import Anchor, Event, head, of_request, seal
from factory.ledger.calibrations import Calibration, save
from factory.ledger.errors import LedgerError
from factory.ledger.outcomes import Outcome, record_outcome
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.reviews import Review, claim, decide, finish, open_review
from factory.ledger.schema import AUDIT
from factory.ledger.store import Entry, Ledger
from factory.ledger.verification import verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MakeEntry = Callable[..., Entry]
numbers = itertools.count()


def event(**more: Any) -> Event:
    given = {"created_at": NOON, "actor": "ana", "action": "alert.sent", "subject": "team:support"}
    return Event(**(given | more))


def record(ledger: Ledger, entries: list[Entry]) -> None:
    """Record requests so that each has its event, whether or not the store does that itself."""
    ledger.record_many(entries)
    sealed = {item.subject for item in audit.events(ledger, action="request", limit=10_000)}
    with ledger.write() as connection:
        seal(
            connection, [of_request(*item) for item in entries if item[0].request_id not in sealed]
        )


@pytest.fixture
def chain(ledger: Ledger, entry: MakeEntry) -> Ledger:
    """A ledger with three requests, one event of another kind, and two requests more."""
    record(ledger, [entry(f"r{n}", (1_000, 2_000), minute=n) for n in range(1, 4)])
    with ledger.write() as connection:
        seal(connection, [event()])
    record(ledger, [entry(f"r{n}", minute=n) for n in range(5, 7)])
    assert verify(ledger).ok
    return ledger


def tamper(ledger: Ledger, *statements: str) -> None:
    """Change rows as the owner of the database could: without the triggers."""
    with ledger.write() as connection:
        _drop_triggers(connection)
        for statement in statements:
            connection.execute(text(statement))


def _drop_triggers(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        for name in connection.scalars(text(names)).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
    else:
        for name in ("audit", "requests", "charges", "outcomes", "calibrations"):
            connection.execute(text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))


def test_an_empty_log_is_whole(ledger: Ledger) -> None:
    found = verify(ledger)
    assert (found.ok, found.checked, found.reasons) == (True, 0, ())
    assert head(ledger) == found.head == Anchor(0, audit.GENESIS)


def test_events_come_back_in_order_and_by_what_they_are(chain: Ledger) -> None:
    found = audit.events(chain)
    assert [item.seq for item in found] == [1, 2, 3, 4, 5, 6]
    assert found[0].previous_hash == audit.GENESIS
    assert [later.previous_hash for later in found[1:]] == [item.hash for item in found[:-1]]
    assert [item.subject for item in audit.events(chain, action="request", limit=2)] == ["r5", "r6"]
    assert [item.seq for item in audit.events(chain, action="request.ok", subject="r2")] == [2]
    assert [item.seq for item in audit.events(chain, actor="ana")] == [4]
    assert [item.seq for item in audit.events(chain, since=NOON + timedelta(minutes=5))] == [5, 6]
    assert audit.events(chain, action="request.o") == audit.events(chain, action="req") == []


def test_a_request_event_says_what_was_decided(entry: MakeEntry) -> None:
    request, charges = entry("r1", (1_000, 2_000), key_id="key-1", status="ok")
    made = of_request(request, charges)
    assert (made.actor, made.action, made.subject) == ("key-1", "request.ok", "r1")
    assert (made.detail["cost_nusd"], made.detail["tier"]) == (3_000, 2)
    assert made == of_request(request, charges[::-1])
    assert of_request(*entry("r1", (1_000, 2_001))).detail["digest"] != made.detail["digest"]


@pytest.mark.parametrize("record_type", [RequestRecord, ChargeRecord])
def test_the_digest_covers_every_field(record_type: type) -> None:
    covered = audit.REQUEST_FIELDS if record_type is RequestRecord else audit.CHARGE_FIELDS
    assert sorted(covered) == sorted(item.name for item in fields(record_type))


TAMPERING = {
    "an event's actor": (4, "UPDATE audit SET actor = 'eve' WHERE seq = 4"),
    "an event's time": (
        *(4, "UPDATE audit SET created_at = (SELECT created_at FROM audit WHERE seq = 6)"),
        *(" WHERE seq = 4",),
    ),
    "an event's detail": (2, """UPDATE audit SET detail = '{"cost_nusd": 1}' WHERE seq = 2"""),
    "an event's hash": (3, f"UPDATE audit SET hash = '{'0' * 64}' WHERE seq = 3"),
    "a link": (3, f"UPDATE audit SET previous_hash = '{'0' * 64}' WHERE seq = 3"),
    "a missing event": (4, "DELETE FROM audit WHERE seq = 4"),
    "a missing beginning": (1, "DELETE FROM audit WHERE seq <= 2"),
    "two events exchanged": (
        *(1, "UPDATE audit SET seq = 99 WHERE seq = 1; UPDATE audit SET seq = 1 WHERE seq = 2"),
        *("; UPDATE audit SET seq = 2 WHERE seq = 99",),
    ),
    "an added event": (
        7,
        "INSERT INTO audit SELECT 7, created_at, actor, action, subject, detail, hash, hash "
        "FROM audit WHERE seq = 6",
    ),
    "a request's cost": (2, "UPDATE requests SET cost_nusd = 1 WHERE request_id = 'r2'"),
    "a request's team": (2, "UPDATE requests SET team = 'rivals' WHERE request_id = 'r2'"),
    "a request's reasons": (2, "UPDATE requests SET reasons = '[]' WHERE request_id = 'r2'"),
    "a charge's cost": (1, "UPDATE charges SET cost_nusd = 0 WHERE charge_id = 'r1-1'"),
    "a missing charge": (1, "DELETE FROM charges WHERE charge_id = 'r1-1'"),
    "a moved charge": (1, "UPDATE charges SET request_id = 'r5', seq = 9 WHERE charge_id = 'r1-1'"),
    "a missing request": (
        *(3, "DELETE FROM charges WHERE request_id = 'r3';"),
        *("DELETE FROM requests WHERE request_id = 'r3'",),
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_where_it_was_done(chain: Ledger, what: str) -> None:
    seq, *parts = TAMPERING[what]
    tamper(chain, *filter(None, "".join(map(str, parts)).split(";")))
    found = verify(chain)
    assert not found.ok
    assert found.first_broken_seq == seq
    assert 1 <= len(found.reasons) <= 4, "one change is not reported all along the chain"


def test_an_added_request_is_found(chain: Ledger) -> None:
    names = ", ".join(audit.REQUEST_FIELDS)
    copied = names.replace("request_id", "'forged'")
    tamper(
        chain,
        f"INSERT INTO requests ({names}) SELECT {copied} FROM requests WHERE request_id = 'r2'",
    )
    found = verify(chain)
    assert (found.ok, found.first_broken_seq) == (False, None)
    assert found.reasons == ("request 'forged' has no event: it was not recorded by the factory",)


def test_requests_from_before_the_log_are_no_fault(chain: Ledger) -> None:
    names = ", ".join(audit.REQUEST_FIELDS)
    old = names.replace("request_id", "'old'").replace("created_at", "'2026-01-01 00:00:00.000000'")
    if chain._engine.dialect.name == "postgresql":
        old = old.replace("'2026-01-01 00:00:00.000000'", "timestamptz '2026-01-01 00:00:00Z'")
    tamper(
        chain, f"INSERT INTO requests ({names}) SELECT {old} FROM requests WHERE tier = 1 LIMIT 1"
    )
    found = verify(chain)
    assert (found.ok, found.older) == (True, 1)


def test_a_cut_tail_is_found_by_its_requests_and_by_an_anchor(chain: Ledger) -> None:
    anchor = head(chain)
    tamper(chain, "DELETE FROM audit WHERE seq > 4")
    assert [reason[:12] for reason in verify(chain).reasons] == ["request 'r5'", "request 'r6'"]
    tamper(
        chain,
        "DELETE FROM charges WHERE request_id IN ('r5', 'r6')",
        "DELETE FROM requests WHERE request_id IN ('r5', 'r6')",
    )
    assert verify(chain).ok, "nothing is left that could show it"
    found = verify(chain, anchor)
    assert (found.ok, found.first_broken_seq) == (False, 5)
    assert "the log ends at event 4, before the anchor 6" in found.reasons


def test_a_log_written_anew_is_found_by_an_anchor(chain: Ledger) -> None:
    anchor = head(chain)
    kept = audit.events(chain)
    tamper(chain, "DELETE FROM audit")
    with chain.write() as connection:
        again = [{item.name: getattr(old, item.name) for item in fields(Event)} for old in kept]
        again[3]["actor"] = "eve"
        seal(connection, [Event(**content) for content in again])
    assert verify(chain).ok
    found = verify(chain, anchor)
    assert (found.ok, found.first_broken_seq) == (False, 6)
    assert "written anew" in found.reasons[0]


def test_a_lost_log_leaves_requests_that_it_cannot_vouch_for(chain: Ledger) -> None:
    assert verify(chain).older == 0
    anchor = head(chain)
    tamper(chain, "DELETE FROM audit")
    assert verify(chain).older == 5
    assert not verify(chain, anchor).ok


def test_an_anchor_holds_while_the_log_grows(chain: Ledger) -> None:
    anchor = Anchor.parse(f" {head(chain)}\n")
    with chain.write() as connection:
        seal(connection, [event(subject="rev-2")])
    assert verify(chain, anchor).ok
    assert head(chain).seq == anchor.seq + 1


PLEDGED = {
    "an outcome's success": "UPDATE outcomes SET success = NOT success",
    "an outcome's minutes": "UPDATE outcomes SET human_minutes = 0",
    "an outcome's time": "UPDATE outcomes SET created_at = (SELECT max(created_at) FROM requests)",
    "a missing outcome": "DELETE FROM outcomes",
    "an added outcome": "INSERT INTO outcomes SELECT 'o2', request_id, created_at, success, "
    "human_minutes, reporter, comment FROM outcomes",
    "a calibration": """UPDATE calibrations SET detail = '{"threshold": 0.1}'""",
    "a missing calibration": "DELETE FROM calibrations",
    "an added calibration": "INSERT INTO calibrations SELECT 99, created_at, kind, scope, subject, "
    "detail FROM calibrations",
    "who decided": "UPDATE reviews SET decided_by = 'eve' WHERE review_id = 'rev-1'",
    "what was written": """UPDATE reviews SET result = '{"text": "pay eve"}'
        WHERE review_id = 'rev-1'""",
    "what was asked": """UPDATE reviews SET request = '{}' WHERE review_id = 'rev-1'""",
    "a missing review": "DELETE FROM reviews WHERE review_id = 'rev-2'",
}


@pytest.mark.parametrize("what", PLEDGED)
def test_outcomes_calibrations_and_decisions_are_covered(
    ledger: Ledger, entry: MakeEntry, what: str
) -> None:
    ledger.record_many([entry("r1"), entry("r2", minute=9)])
    later = NOON + timedelta(hours=1)
    mail = Outcome(
        outcome_id="o1", request_id="r1", created_at=later, success=True, human_minutes=2
    )
    record_outcome(ledger, mail)
    save(
        ledger,
        Calibration(
            kind="semantic", scope="s", subject="m@1", detail={"threshold": 0.9}, created_at=NOON
        ),
    )
    for name in ("rev-1", "rev-2"):
        waiting = Review(
            review_id=name,
            created_at=NOON,
            request_id=f"req-{name}",
            team="support",
            endpoint="helpdesk",
            stage="input",
            reasons=(),
            request={"messages": []},
        )
        open_review(ledger, waiting)
    decide(ledger, "rev-1", "edit", "ana", "softer", "please call", at=later)
    claim(ledger, "rev-1", at=later)
    assert verify(ledger).ok
    finish(ledger, "rev-1", {"id": "chatcmpl-1"}, at=later)
    assert verify(ledger).ok
    tamper(ledger, PLEDGED[what])
    found = verify(ledger)
    assert not found.ok
    assert 1 <= len(found.reasons) <= 2


@pytest.mark.parametrize("written", ["", "7", "x:00", "7:00", f"-1:{'0' * 64}", f"1:{'G' * 64}"])
def test_what_is_no_anchor_is_refused(written: str) -> None:
    with pytest.raises(LedgerError, match="anchor"):
        Anchor.parse(written)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET detail = 'no json' WHERE seq = 4",
        "UPDATE audit SET created_at = 'no time' WHERE seq = 4",
        "UPDATE audit SET subject = x'00ff' WHERE seq = 4",
        "UPDATE requests SET reasons = 'no json' WHERE request_id = 'r2'",
        "UPDATE requests SET latency_ms = 9e999 WHERE request_id = 'r2'",
        "UPDATE charges SET reason = x'00ff' WHERE request_id = 'r2'",
        "UPDATE requests SET created_at = 'no time' WHERE request_id = 'r2'",
    ],
)
def test_rows_that_cannot_even_be_read_are_told(
    sqlite_url: str, change: str, entry: MakeEntry
) -> None:
    from factory.ledger.store import open_ledger

    ledger = open_ledger(sqlite_url)
    record(ledger, [entry(f"r{n}", minute=n) for n in range(1, 6)])
    tamper(ledger, change)
    found = verify(ledger)
    ledger.close()
    assert not found.ok
    assert found.first_broken_seq == (4 if "audit" in change else 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"created_at": NOON.replace(tzinfo=None)}, "time zone"),
        ({"actor": ""}, "actor must be 1 to 200"),
        ({"subject": "a\0b"}, "subject must be 1 to 200"),
        ({"action": "\ud800"}, "action must be 1 to 200"),
        ({"detail": {"x": float("nan")}}, "plain JSON"),
        ({"detail": {"x": {1, 2}}}, "plain JSON"),
    ],
)
def test_an_event_that_cannot_be_kept_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        event(**change)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.lists(
            st.builds(
                Event,
                created_at=st.datetimes(
                    datetime(1970, 1, 2), datetime(2900, 1, 1), timezones=st.just(UTC)
                ),
                actor=names.map(lambda name: name[:50]),
                action=st.just("x.y"),
                subject=names.map(lambda name: name[:50]),
                detail=st.dictionaries(st.text(), plain, max_size=4)
                | st.dictionaries(st.integers(), plain, max_size=4),
            ),
            max_size=4,
        ),
        max_size=3,
    ),
    data=st.data(),
)
def test_any_events_make_a_chain_and_any_change_breaks_it(
    ledger: Ledger, batches: list[list[Event]], data: st.DataObject
) -> None:
    before = head(ledger)
    for batch in batches:
        with ledger.write() as connection:
            seal(connection, batch)
    added = [item for batch in batches for item in batch]
    found = verify(ledger, before if before.seq else None)
    assert found.ok, found.reasons
    assert found.checked == found.head.seq == before.seq + len(added)
    if not added:
        return
    kept = audit.events(ledger, limit=len(added))
    assert [(item.actor, item.subject, item.detail) for item in kept] == [
        (item.actor, item.subject, item.detail) for item in added
    ]
    victim = data.draw(st.sampled_from(kept))
    with ledger.read() as connection:
        row = connection.execute(AUDIT.select().where(AUDIT.c.seq == victim.seq)).one()
    changed = row._asdict() | data.draw(
        st.sampled_from(
            [
                {"actor": row.actor + "x"},
                {"subject": "x" + row.subject},
                {"detail": {"x": [row.seq]}},
            ]
        )
    )
    assert audit.chained(row.previous_hash, row.seq, Event(**_only(changed))) != row.hash


def _only(content: dict[str, Any]) -> dict[str, Any]:
    return {item.name: content[item.name] for item in fields(Event)}


def test_several_writers_make_one_chain(ledger: Ledger) -> None:
    def write(name: str) -> None:
        for number in range(10):
            with ledger.write() as connection:
                seal(connection, [event(subject=f"{name}-{number}-{part}") for part in range(2)])

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = verify(ledger)
    assert (found.ok, found.checked) == (True, 80), found.reasons
    for name in "abcd":
        own = [item.subject for item in audit.events(ledger, limit=100) if item.subject[0] == name]
        assert own == [f"{name}-{number}-{part}" for number in range(10) for part in range(2)]


def test_what_is_rolled_back_leaves_no_gap(chain: Ledger) -> None:
    def fail() -> None:
        with chain.write() as connection:
            seal(connection, [event(subject="never")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with chain.write() as connection:
        seal(connection, [event(subject="after")])
    assert verify(chain).ok
    assert audit.events(chain)[-1].seq == 7


def test_a_log_longer_than_one_chunk(ledger: Ledger) -> None:
    with ledger.write() as connection:
        seal(connection, [event(subject=f"s{n}") for n in range(1_100)])
    assert verify(ledger).checked == 1_100
    tamper(ledger, "UPDATE audit SET actor = 'eve' WHERE seq = 777")
    assert verify(ledger).first_broken_seq == 777


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert audit.fingerprint({"a": 1, "b": [2.5]}) == audit.fingerprint({"b": [2.5], "a": 1})
    assert audit.fingerprint(json.loads('"é"')) != audit.fingerprint("e")

"""`factory audit`, `factory reviews` and the outcomes in `factory costs`, on a real ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from factory.cli import app
from factory.config import NANO, load
from factory.ledger.audit import events
from factory.ledger.outcomes import Outcome, record_outcome
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.reviews import Review, get, open_review
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.success import HUMAN_NUSD_PER_HOUR
from factory.vectors import Store, VectorStores
from factory.vectors.store import new_store_id

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of a home of this test's own, with one request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACTORY_CONFIG", raising=False)
    opened = open_ledger(load().database_url)
    who = {"created_at": NOON, "team": "support", "endpoint": "helpdesk", "tier": 1, "model": "m"}
    opened.record(
        RequestRecord(request_id="r1", status="ok", http_status=200, cost_nusd=1_500, **who),
        [
            ChargeRecord(
                charge_id="c1", request_id="r1", seq=0, kind="generation", cost_nusd=1_500, **who
            )
        ],
    )
    yield opened
    opened.close()


@pytest.fixture
def run(ledger: Ledger) -> Callable[..., str]:
    """Run a command in this process; returns what it printed, or what it complained about."""

    def invoke(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.stdout or result.stderr

    return invoke


@pytest.fixture
def waiting(ledger: Ledger) -> Review:
    """A review that waits, about a prompt that would like to paint the terminal."""
    review = Review(
        review_id="rev-1",
        created_at=NOON,
        request_id="r2",
        team="support",
        endpoint="helpdesk",
        stage="input",
        reasons=("banned words: \x1b[31mfree money\x1b[0m",),
        request={"messages": [{"role": "user", "content": "\x1b[2J\x9b31m pay [bold]me[/bold]"}]},
    )
    open_review(ledger, review)
    return review


def test_a_whole_log_is_verified_and_anchored(run: Callable[..., str]) -> None:
    anchor = run("audit", "anchor").strip()
    assert anchor.startswith("1:")
    assert json.loads(run("audit", "anchor", "--json"))["seq"] == 1
    assert "The log is whole: 1 events" in run("audit", "verify")
    assert "event 1 is the anchored one" in run("audit", "verify", "--anchor", anchor)
    found = json.loads(run("audit", "verify", "--json"))
    assert (found["ok"], found["checked"], found["head"]) == (True, 1, anchor)
    assert "an anchor is SEQ:HASH" in run("audit", "verify", "--anchor", "nonsense", code=1)


def test_a_tampered_ledger_is_exit_code_1(ledger: Ledger, run: Callable[..., str]) -> None:
    with ledger.write() as connection:
        connection.execute(text("DROP TRIGGER charges_no_update"))
        connection.execute(text("UPDATE charges SET cost_nusd = 1"))
    said = run("audit", "verify", code=1)
    assert "does not hold from event 1 on" in said
    assert "request 'r1' or its charges" in said
    found = json.loads(run("audit", "verify", "--json", code=1))
    assert (found["ok"], found["first_broken_seq"]) == (False, 1)


def test_events_are_listed(run: Callable[..., str], waiting: Review) -> None:
    said = run("audit", "list")
    assert "request.ok" in said
    assert "review.open" in said
    found = json.loads(run("audit", "list", "--action", "review", "--json"))["events"]
    assert [(event["subject"], event["actor"]) for event in found] == [("rev-1", "anonymous")]
    assert json.loads(run("audit", "list", "--subject", "r1", "--json"))["events"][0]["seq"] == 1
    assert "There is no such event" in run("audit", "list", "--actor", "nobody")
    assert "There is no such event" in run("audit", "list", "--since", "2026-11-24")


def test_a_review_is_listed_shown_and_approved(
    ledger: Ledger, run: Callable[..., str], waiting: Review
) -> None:
    assert "rev-1" in run("reviews", "list")
    assert "Nothing waits" in run("reviews", "list", "--team", "research")
    shown = run("reviews", "show", "rev-1")
    assert "pay [bold]me[/bold]" in shown
    for output in (shown, run("reviews", "list")):
        assert "\x1b" not in output
        assert "\x9b" not in output
    assert json.loads(run("reviews", "show", "rev-1", "--json"))["request"] == waiting.request
    said = run("reviews", "approve", "rev-1", "--by", "ana", "--note", "a known customer")
    assert "rev-1 is approved by ana" in said
    found = get(ledger, "rev-1")
    assert found is not None
    assert (found.status, found.note) == ("approved", "a known customer")
    assert "decided by ana: a known customer" in run("reviews", "show", "rev-1")
    assert "approved by ana" in run("reviews", "reject", "rev-1", code=1)
    assert "Nothing waits" in run("reviews", "list")
    listed = json.loads(run("reviews", "list", "--status", "all", "--json"))["reviews"]
    assert [review["status"] for review in listed] == ["approved"]


def test_a_review_is_edited(run: Callable[..., str], waiting: Review, tmp_path: Path) -> None:
    run("reviews", "edit", "rev-1", code=2)
    run("reviews", "edit", "rev-1", "--text", "a", "--file", "b", code=2)
    (tmp_path / "latin.txt").write_bytes(b"gr\xfc\xdfe")
    assert "not UTF-8" in run("reviews", "edit", "rev-1", "--file", "latin.txt", code=2)
    (tmp_path / "new.txt").write_text("Grüße", "utf-8")
    found = json.loads(
        run("reviews", "edit", "rev-1", "--file", "new.txt", "--by", "ana", "--json")
    )
    assert (found["status"], found["text"]) == ("edited", "Grüße")


def test_a_review_is_rejected(run: Callable[..., str], waiting: Review) -> None:
    assert json.loads(run("reviews", "reject", "rev-1", "--json"))["status"] == "rejected"
    assert "there is no review 'rev-2'" in run("reviews", "show", "rev-2", code=1)
    assert "there is no review 'rev-2'" in run("reviews", "approve", "rev-2", code=1)
    assert "status must be one of" in run("reviews", "list", "--status", "lost", code=1)


def test_costs_say_what_a_success_cost(ledger: Ledger, run: Callable[..., str]) -> None:
    assert "Outcomes:" not in run("costs", "report")
    record_outcome(
        ledger,
        Outcome(
            outcome_id="o1",
            request_id="r1",
            created_at=NOON,
            success=True,
            human_minutes=2,
            reporter="crm",
            comment="solved",
        ),
    )
    said = run("costs", "report")
    assert "Outcomes: 1 reported, 1 successful; an hour of a person at 45 USD" in said
    assert "Per successful outcome:      1.500001500 USD" in said
    assert "On the cheapest viable tier: 100.0%, or more" in said
    plain = json.loads(run("costs", "report", "--human-usd-per-hour", "60.3", "--json"))
    assert plain["success"]["cost_per_success_nusd"] == 60_300_000_000 // 30 + 1_500
    default = json.loads(run("costs", "report", "--json"))["success"]["human_usd_per_hour"]
    assert float(default) * NANO == HUMAN_NUSD_PER_HOUR
    run("costs", "report", "--human-usd-per-hour", "-1", code=2)
    run("costs", "report", "--human-usd-per-hour", "nan", code=2)
    assert "outcome: success, 2 human minutes, reported by crm" in run("costs", "explain", "r1")
    explained = json.loads(run("costs", "explain", "r1", "--json"))
    assert explained["outcome"]["comment"] == "solved"


def test_stores_are_listed_and_their_deletion_is_audited(run: Callable[..., str], ledger: Ledger):
    assert "No team has a vector store" in run("stores", "list")
    store = Store(
        store_id=new_store_id(),
        name="handbook",
        endpoint="search",
        embedder="1",
        dimensions=2,
        created_at=1,
        metadata={},
    )
    asyncio.run(VectorStores(load().vectors_url).create("support", store))
    (row,) = json.loads(run("stores", "list", "--team", "support", "--json"))["stores"]
    assert (row["name"], row["files"], row["bytes"]) == ("handbook", 0, 0)
    assert "there is no team" in run("stores", "list", "--team", "nobody", code=2)
    assert "is deleted" in run("stores", "delete", store.store_id, "--team", "support")
    assert "there is no vector store" in run(
        "stores", "delete", store.store_id, "--team", "support", code=1
    )
    assert [one.subject for one in events(ledger, action="vector_store")] == [store.store_id]

"""What a scrape reads from a real ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory.cluster.queue.spec import JobSpec
from factory.cluster.queue.store import Queue
from factory.config import parse
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import open_ledger
from factory.ledger.zones import Observation, observe
from factory.telemetry.books import read

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CONFIG = """
teams: {support: {budget: {daily_usd: 0.001}}, research: {}}
models: {}
endpoints: {}
"""


@pytest.fixture
def ledger(tmp_path: Path):
    opened = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


def test_budgets_shrink_and_jobs_wait(ledger, tmp_path):
    settings = parse(CONFIG, "test", tmp_path, {})
    before = read(ledger, settings, NOW)
    assert before.remaining == {("team:support", "day"): 1.0}
    assert before.waits_s == {"support": 0.0, "research": 0.0}
    assert set(before.jobs.values()) == {0}

    shared = {"request_id": "r", "created_at": NOW, "team": "support", "endpoint": "helpdesk"}
    cost = {"cost_nusd": 750_000, "tier": 1, "model": "small"}
    ledger.record(
        RequestRecord(**shared, **cost, status="ok", http_status=200),
        [ChargeRecord(**shared, **cost, charge_id="c", seq=0, kind="generation")],
    )
    queue = Queue(ledger)
    spec = JobSpec(module="pipelines.finetune", team="research")
    for minutes in (10, 40):
        queue.submit(spec, NOW - timedelta(minutes=minutes), None)
    after = read(ledger, settings, NOW)
    assert after.remaining == {("team:support", "day"): pytest.approx(0.25)}
    assert after.jobs["waiting"] == 2
    # What nobody has looked at yet does not wait for room; a retried job does, from then on.
    assert after.waits_s["research"] == 0
    job = queue.list()[0]
    queue.cancel(job.id, NOW)
    queue.retry(job.id, NOW - timedelta(minutes=25))
    assert read(ledger, settings, NOW).waits_s == {"support": 0.0, "research": 25 * 60.0}

    for minutes, up in ((9, True), (4, False)):
        at = NOW - timedelta(minutes=minutes)
        observe(ledger, [Observation(at=at, pool="spot", zone="a", up=up, source="test")])
    assert read(ledger, settings, NOW).zones == {("spot", "a"): False}

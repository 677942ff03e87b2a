"""Idle shutdown: what counts as use, the announcement, the stop, and the end date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from factory.cluster import local
from factory.cluster.idle import shutdown as idle
from factory.cluster.idle.shutdown import Activity, check, decide, stops
from factory.config import Idle, Settings
from factory.ledger.schema import AUDIT
from factory.ledger.store import open_ledger

from .conftest import settings_at

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POLICY = Idle(cluster_after_s=3600, announce_s=600)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("activity", "act", "words"),
    [
        (Activity(started=ago(300), last=ago(30)), "keep", "used 30 min ago"),
        (Activity(started=ago(30)), "keep", "used 30 min ago"),
        (Activity(started=ago(300), last=ago(90)), "announce", "nobody used it for 1 h 30 min"),
        (Activity(started=ago(300), busy=("session 2",)), "keep", "in use: session 2"),
        (Activity(started=ago(300), announced=ago(5)), "announce", "5 h 0 min"),
        (Activity(started=ago(300), announced=ago(11)), "stop", "nobody used it"),
        (Activity(started=ago(300), last=ago(2), announced=ago(11)), "keep", "used 2 min ago"),
        (Activity(started=ago(300), last=ago(70), announced=ago(90)), "announce", "1 h 10 min"),
        (Activity(started=ago(-60), announced=ago(11)), "keep", "used 0 s ago"),
    ],
)
def test_decisions(activity: Activity, act: str, words: str) -> None:
    found = decide(activity, POLICY, NOW)
    assert (found.act, words in found.reason) == (act, True)
    assert (found.stops_at is not None) == (act == "announce")


def test_it_never_stops_unless_asked_to() -> None:
    assert decide(Activity(started=ago(9e4), announced=ago(9e3)), Idle(), NOW).act == "keep"


def test_an_end_date_holds_for_a_busy_cluster_too_but_is_announced() -> None:
    busy = {"started": ago(300), "busy": ("job tune",)}
    assert decide(Activity(**busy), Idle(ends_at=ago(-60)), NOW).act == "keep"  # type: ignore[arg-type]
    near = decide(Activity(**busy), Idle(ends_at=ago(-5)), NOW)  # type: ignore[arg-type]
    assert (near.act, near.stops_at) == ("announce", NOW + timedelta(seconds=600))
    told = Activity(**busy, announced=ago(12))  # type: ignore[arg-type]
    assert decide(told, Idle(ends_at=ago(1)), NOW).act == "stop"


def test_announced_once_then_stopped_and_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_at(tmp_path / "home").model_copy(update={"idle": POLICY})
    (settings.home / "run").mkdir(parents=True)
    cluster = local.Cluster("c1", 1, ago(300).timestamp(), "a", "http://127.0.0.1:9", "t", "token")
    monkeypatch.setattr(local, "current", lambda _: cluster)
    ledger = open_ledger(settings.database_url)
    stopped: list[Settings] = []

    def look(minutes: float, *, act: bool = True, last: datetime | None = None) -> str:
        def observed(*_: object) -> Activity:
            said = idle._announced(settings, cluster)
            return Activity(started=ago(300), last=last, announced=said)

        monkeypatch.setattr(idle, "observe", observed)
        now = NOW + timedelta(minutes=minutes)
        return check(
            settings, ledger, now, act=act, stop=lambda found: not stopped.append(found)
        ).act

    assert look(0, act=False) == "announce"
    assert not (settings.home / "run" / "idle.json").exists()
    assert look(0) == look(5) == "announce"
    assert look(6, last=NOW + timedelta(minutes=6)) == "keep"  # somebody came: taken back
    assert not (settings.home / "run" / "idle.json").exists()
    assert look(70) == "announce"
    assert look(85) == "stop"
    assert stopped == [settings]
    (found,) = stops(ledger)
    assert found["reason"] == "nobody used it for 6 h 25 min"
    with ledger.read() as connection:
        actions = list(connection.scalars(select(AUDIT.c.action).order_by(AUDIT.c.seq)))
    assert actions == ["idle.announce", "idle.announce", "idle.stop"]
    ledger.close()


def test_nothing_runs_is_nothing_to_stop(settings: Settings) -> None:
    ledger = open_ledger(settings.database_url)
    assert check(settings, ledger, NOW, act=True).reason == "no cluster runs"
    ledger.close()

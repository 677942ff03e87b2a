"""Idle things one by one: what is listed, what is announced, what is stopped, what that saves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.cluster import local
from factory.cluster.idle import leftovers
from factory.cluster.idle import shutdown as idle
from factory.cluster.idle.leftovers import Thing, check, judge, left_behind, sessions, unused
from factory.cluster.idle.release import end_driver
from factory.config import Idle
from factory.ledger.audit import events
from factory.ledger.store import open_ledger

from .conftest import settings_at

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POLICY = Idle(session_after_s=3600, leftover_after_s=600, announce_s=300)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def thing(**changes: Any) -> Thing:
    values = {"kind": "session", "id": "2", "name": "process 9", "since": ago(300), "stop": {}}
    return Thing(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "told", "act", "words"),
    [
        ({"busy": "in use: train"}, ago(9), "keep", "in use: train"),
        ({"last": ago(30)}, None, "keep", "worked 30 min ago"),
        ({"last": ago(90)}, None, "announce", "no work for 1 h 30 min"),
        ({"last": ago(90)}, ago(2), "announce", "no work"),
        ({"last": ago(90)}, ago(6), "stop", "no work"),
        ({"last": ago(90)}, ago(100), "announce", "no work"),  # it worked since it was told
        ({"last": ago(90)}, ago(-5), "announce", "no work"),  # a clock that was set back
        ({"kind": "actor", "last": ago(30)}, None, "announce", "no work for 30 min"),
        ({"kind": "endpoint", "stop": None, "name": "it sleeps"}, ago(99), "keep", "it sleeps"),
    ],
)
def test_judgements(changes: dict[str, Any], told: datetime | None, act: str, words: str) -> None:
    found = judge(thing(**changes), POLICY, told, NOW)
    assert (found.act, words in found.reason) == (act, True)
    assert (found.stops_at is not None) == (act == "announce")
    quiet = judge(thing(**changes), Idle(), told, NOW)
    assert quiet.act == "keep"


def test_what_ray_lists_becomes_things(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    nodes = [{"node_id": "n", "state": "ALIVE", "resources_total": {"CPU": 4}}]
    driver = {"pid": "77", "node_ip_address": "10.0.0.1"}
    jobs: dict[str, dict[str, Any]] = {
        "01": {"job_id": "01", "submission_id": "tune-1.1", "status": "SUCCEEDED"},
        "02": {"job_id": "02", "driver_info": driver, "start_time": ms(ago(90))},
        "03": {"job_id": "03", "driver_info": driver, "status": "SUCCEEDED"},
    }
    jobs["01"]["end_time"] = ms(ago(60))

    def actor(name: str, job: str, **more: Any) -> dict[str, Any]:
        values = {"actor_id": f"id-{name}", "class_name": "Index", "name": name, "job_id": job}
        held = {"node_id": "n", "required_resources": {"CPU": 1.0}, "is_detached": True}
        return values | held | {"ray_namespace": "mine"} | more

    actors = [
        actor("left", "01"),
        actor("serve", "01", ray_namespace="serve"),
        actor("stats", "01", ray_namespace="_ray_internal"),
        actor("light", "01", required_resources={}),
        actor("own", "02", is_detached=False),
        actor("running", "02"),
    ]
    tasks = [
        {"job_id": "02", "state": "FINISHED", "end_time_ms": ms(ago(70)), "name": "f"},
        {"job_id": "01", "actor_id": "id-left", "state": "RUNNING", "name": "Index.add"},
    ]
    group = {"placement_group_id": "pg", "name": "", "creator_job_id": "01", "is_detached": True}
    bundle = {"node_id": "n", "unit_resources": {"CPU": 2.0}}
    groups = [
        group | {"bundles": [bundle, bundle]},
        group | {"placement_group_id": "serve", "name": "SERVE_DEPLOYMENT::x"},
        group | {"placement_group_id": "live", "creator_job_id": "02"},
    ]

    def having(**of: str) -> list[dict[str, Any]]:
        return [task for task in tasks if of.items() <= task.items()]

    (session,) = sessions(settings, nodes, jobs, actors, having)
    assert (session.id, session.last, session.busy) == ("02", ago(70), "")
    assert session.nusd_per_hour == settings.pools["onprem"].nusd_per_hour // 2
    assert session.stop == {"driver": 77, "ip": "10.0.0.1", "before_ms": ms(ago(90))}
    left, held = left_behind(settings, nodes, jobs, actors, having, groups)
    assert (left.kind, left.name) == ("actor", "Index 'left' of job tune-1.1")
    assert left.busy == "in use: Index.add"
    (many,) = sessions(settings, nodes, jobs, actors, lambda **_: tasks[:1] * 10_000)
    assert many.busy == "in use: 10,000 tasks or more"
    assert (held.kind, held.since, held.busy) == ("placement group", ago(60), "")
    assert held.nusd_per_hour == settings.pools["onprem"].nusd_per_hour


def test_announced_then_stopped_and_a_failure_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_at(tmp_path / "home").model_copy(update={"idle": POLICY})
    (settings.home / "run").mkdir(parents=True)
    cluster = local.Cluster("c1", 1, ago(300).timestamp(), "a", "http://127.0.0.1:9", "t", "token")
    monkeypatch.setattr(local, "current", lambda _: cluster)
    seen = [thing(id="1", nusd_per_hour=7), thing(id="2"), thing(id="3", busy="in use: f")]
    monkeypatch.setattr(leftovers, "observe", lambda *_: seen)
    asked: list[list[str]] = []
    refuse = {"session 2": "it does not end"}

    def release(_: object, __: object, things: Any) -> dict[str, str]:
        asked.append([each.key for each in things])
        return {key: why for key, why in refuse.items() if key in asked[-1]}

    with closing(open_ledger(settings.database_url)) as ledger:

        def look(minutes: float, act: bool = True) -> list[str]:
            now = NOW + timedelta(minutes=minutes)
            found = check(settings, ledger, now, act=act, release=release)
            assert unused(found) == {"1", "2"} & {each.id for each in seen}
            return [each.decision.act for each in found]

        assert look(0, act=False) == look(0) == look(4) == ["announce", "announce", "keep"]
        assert asked == []
        assert look(6) == ["stop", "stop", "keep"]
        seen = [replace(seen[1])]
        monkeypatch.setattr(leftovers, "observe", lambda *_: seen)
        assert look(7) == ["stop"]
        refuse.clear()
        assert look(8) == ["stop"]
        assert asked == [["session 1", "session 2"], ["session 2"], ["session 2"]]
        assert not (settings.home / "run" / "leftovers.json").exists()
        stops = idle.stops(ledger)
        assert [(each["what"], each["saves_usd_per_hour"]) for each in stops] == [
            ("session 1", "0.000000007"),
            ("session 2", "0.000000000"),
        ]
        assert len(events(ledger, action="idle.announce")) == 2


def test_a_driver_is_ended_unless_its_number_is_somebody_elses() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        began = int(time.time() * 1000)
        assert "another one by now" in end_driver(sleeper.pid, began - 3_600_000)
        assert sleeper.poll() is None
        assert end_driver(sleeper.pid, began) == ""
        assert sleeper.wait(1) == -signal.SIGTERM
        assert end_driver(sleeper.pid, began) == ""  # gone is ended
    finally:
        sleeper.kill()

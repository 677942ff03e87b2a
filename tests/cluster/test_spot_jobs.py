"""The spot policy at the queue: the record of zones decides where a job with a deadline runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from factory.cluster.clouds.stockroom import Record
from factory.cluster.meter import look
from factory.cluster.nodehours import Node, node_of
from factory.cluster.placement import Work, place
from factory.cluster.queue import moving
from factory.cluster.queue.controller import Controller
from factory.cluster.queue.runner import Seen, Sighting
from factory.cluster.queue.spec import JobSpec
from factory.cluster.queue.store import Queue, QueuedJob
from factory.cluster.spot import zones
from factory.cluster.spot.jobs import Held, SpotJobs, sides, tick_s
from factory.cluster.spot.policy import ONDEMAND
from factory.config import Settings, parse
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.zones import Observation, observe

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RENTED = {"provider": "aws", "max_nodes": 2, "cpus": 4, "startup_s": 60}
POOLS = {
    "spot": {**RENTED, "usd_per_hour": 1, "spot_policy": "spot"},
    "ondemand": {**RENTED, "usd_per_hour": 3},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    document = {
        "models": {},
        "endpoints": {},
        "teams": {"a": {}},
        "pools": POOLS,
        "jobs": {"keep_attempts_apart_s": 0, "stop_grace_s": 0, "autoscaler": True},
    }
    return parse(json.dumps(document), "t.yaml", tmp_path, {"FACTORY_HOME": str(tmp_path)})


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(settings.database_url)
    yield ledger
    ledger.close()


def looks(zone: str, minutes: list[tuple[float, bool]], until: datetime) -> list[Observation]:
    """Runs of minutes, the last one ending at `until`."""
    at = until - timedelta(minutes=sum(length for length, _ in minutes))
    found = []
    for length, up in minutes:
        found.append(Observation(at=at, pool="spot", zone=zone, up=up, source="test"))
        at += timedelta(minutes=length)
    return found


def recorded(ledger: Ledger, zone: str, *, up_now: bool, steady: bool = True) -> None:
    """Some days: long hours up and short ones out (or the other way round)."""
    up, out = (400.0, 40.0) if steady else (20.0, 300.0)
    random = np.random.default_rng(7)
    runs = [
        (1 + float(random.exponential(mean)), there)
        for _ in range(14)
        for mean, there in ((up, True), (out, False))
    ]
    observe(ledger, looks(zone, [*runs, (100, True), (10, up_now)], NOW))


def job_of(**values: object) -> QueuedJob:
    spec = JobSpec.model_validate(
        {"module": "m", "team": "a", "cpus": 4, "duration_s": 7200, "checkpoint_s": 60}
        | {"deadline": NOW + timedelta(hours=6)}
        | values
    )
    return QueuedJob(
        job_id="j",
        order=1,
        created_at=NOW,
        team="a",
        module="m",
        spec=spec,
        state="waiting",
        reason="",
        started_at=NOW - timedelta(minutes=30),
        pool="spot",
    )


def test_without_a_record_or_a_deadline_there_is_no_advice(
    settings: Settings, ledger: Ledger
) -> None:
    policy = SpotJobs(settings, ledger)
    assert policy.advise(job_of(), NOW) is None
    observe(ledger, looks("a", [(120, True)], NOW))
    assert SpotJobs(settings, ledger).advise(job_of(), NOW) is None  # an hour tells nothing
    recorded(ledger, "b", up_now=True)
    known = SpotJobs(settings, ledger)
    assert known.advise(job_of(deadline=None), NOW) is None
    assert known.advise(job_of(duration_s=None), NOW) is None
    assert known.advise(job_of(cpus=0), NOW) is None
    assert known.advise(job_of(pools=("spot",)), NOW) is None


def test_the_record_decides_between_spot_waiting_and_on_demand(
    settings: Settings, ledger: Ledger
) -> None:
    recorded(ledger, "a", up_now=True)
    good = SpotJobs(settings, ledger).advise(job_of(), NOW)
    assert good is not None
    assert (good.pools, good.zone, good.sure) == (("spot",), "a", True)
    assert "expected for another" in good.reasons

    out = NOW + timedelta(minutes=5)
    observe(ledger, [Observation(at=out, pool="spot", zone="a", up=False, source="stock-out")])
    later = out + timedelta(minutes=1)
    policy = SpotJobs(settings, ledger)
    patient = policy.advise(job_of(deadline=NOW + timedelta(hours=14)), later)
    assert patient is not None
    assert patient.pools == ()
    assert "waiting for spot" in patient.reasons
    soon = job_of(deadline=NOW + timedelta(hours=2, minutes=10))
    pressed = SpotJobs(settings, ledger).advise(soon, later)
    assert pressed is not None
    assert (pressed.choice.hold, pressed.pools) == (ONDEMAND, ("ondemand",))
    # Nobody has asked for an hour: somebody has to.
    long = job_of(deadline=NOW + timedelta(hours=30))  # no reason to put it off either
    asked = SpotJobs(settings, ledger).advise(long, out + timedelta(hours=1))
    assert asked is not None
    assert (asked.pools, asked.sure) == (("spot",), False)


def test_a_job_on_demand_returns_to_spot_only_when_spot_was_seen(
    settings: Settings, ledger: Ledger
) -> None:
    recorded(ledger, "a", up_now=True)
    job = job_of(duration_s=4 * 3600, deadline=NOW + timedelta(hours=9))
    firm = Seen(({"cpus": 4.0},), {"cpus": 4.0})
    on = QueuedJob(**{f: getattr(job, f) for f in job.__slots__} | {"pool": "ondemand"})
    why = moving.why(settings, SpotJobs(settings, ledger), on, {"ondemand": firm}, NOW)
    assert why is not None
    assert why.startswith("moves from ondemand to spot: ")
    stale = NOW + timedelta(hours=2)
    assert moving.why(settings, SpotJobs(settings, ledger), on, {"ondemand": firm}, stale) is None
    tired = QueuedJob(**{f: getattr(on, f) for f in on.__slots__} | {"interruptions": 10})
    assert moving.why(settings, SpotJobs(settings, ledger), tired, {"ondemand": firm}, NOW) is None


def test_what_a_job_is_on_is_there_whatever_was_written(settings: Settings, ledger: Ledger) -> None:
    recorded(ledger, "a", up_now=False)
    held = Held("spot", NOW - timedelta(minutes=30), ("a",))
    advice = SpotJobs(settings, ledger).advise(job_of(), NOW, held)
    assert advice is not None
    assert advice.choice.hold == "a"
    assert any("stay on a" in reason for reason in advice.choice.reasons)


class Nodes:
    """A cluster whose spot nodes come and go, and on which work takes its time."""

    cluster_id = "one"

    def __init__(self, up: np.ndarray) -> None:
        self.up, self.minute, self.work = up, 0, 0.0
        self.attempts: dict[str, Sighting] = {}
        self.on: tuple[str, str] | None = None
        self.spent = {"spot": 0, "ondemand": 0}
        self.saved = 0.0

    def pass_a_minute(self) -> None:
        """Work goes on, is saved every minute, and is gone with its node."""
        self.minute += 1
        if self.on is None:
            return
        name, pool = self.on
        if pool == "spot" and not self.up[self.minute]:
            self.attempts[name] = Sighting("STOPPED")
            self.on = None
            return
        self.spent[pool] += 1
        self.work += 1
        if self.work >= 120:
            self.attempts[name] = Sighting("SUCCEEDED")
            self.on = None

    def start(self, job: QueuedJob, pool: str) -> None:
        self.attempts[job.submission_id] = Sighting("RUNNING")
        self.on = (job.submission_id, pool)
        self.work -= 1  # the start takes a minute

    def look(self, submission_id: str) -> Sighting | None:
        return self.attempts.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self.attempts[submission_id] = Sighting("STOPPED")
        self.on = None

    def output(self, submission_id: str) -> str:
        return ""

    def nodes(self) -> dict[str, Seen]:
        node = Seen(({"cpus": 4.0, "gpus": 0.0},), {})
        return {"ondemand": node} | ({"spot": node} if self.up[self.minute] else {})


@pytest.mark.parametrize("seed", [1, 2])
def test_the_queue_keeps_the_deadline_and_pays_less_than_on_demand(
    settings: Settings, ledger: Ledger, seed: int
) -> None:
    random = np.random.default_rng(seed)
    lengths = random.exponential(35, 400) + 2
    whole = np.concatenate([np.full(int(n), i % 2 == 0) for i, n in enumerate(lengths)])
    past, ahead = whole[:5000], whole[5000:5400]
    begin = NOW - timedelta(minutes=5000)
    changed = [0, *(np.flatnonzero(past[1:] != past[:-1]) + 1)]
    observe(
        ledger,
        [
            Observation(
                at=begin + timedelta(minutes=int(at)),
                pool="spot",
                zone="spot",
                up=bool(past[at]),
                source="test",
            )
            for at in changed
        ],
    )
    cluster = Nodes(ahead)
    minute = 0
    controller = Controller(settings, ledger, lambda: cluster, "only", steady=lambda: 60.0 * minute)
    queue = Queue(ledger)
    deadline = NOW + timedelta(minutes=240)
    spec = job_of(deadline=deadline).spec
    job_id = queue.submit(spec, NOW, None).id
    reasons = set()
    for minute in range(240):
        now = NOW + timedelta(minutes=minute)
        there = bool(ahead[minute])
        observe(ledger, [Observation(at=now, pool="spot", zone="spot", up=there, source="running")])
        controller.tick(now)
        job = queue.get(job_id)
        reasons.add(job.reason)
        if job.done:
            break
        cluster.pass_a_minute()
    assert job.state == "succeeded", job.reason
    assert job.ended_at is not None
    assert job.ended_at <= deadline
    assert cluster.spent["spot"] > 0
    alone = 3 * 121
    assert cluster.spent["spot"] + 3 * cluster.spent["ondemand"] < alone
    assert any("of slack for" in reason for reason in reasons)
    assert job.worked_s > 3000


def test_the_meter_and_the_provider_keep_the_record(settings: Settings, ledger: Ledger) -> None:
    def node(name: str, **values: object) -> Node:
        raw = {
            "node_id": name,
            "state": "ALIVE",
            "labels": {"factory/pool": "spot", "ray.io/availability-zone": "a"},
            "end_time_ms": int((NOW - timedelta(minutes=1)).timestamp() * 1000),
        }
        return node_of(raw | values, (), settings.pools)

    reclaimed = node("n1", state="DEAD", state_message="Terminated due to preemption: spot")
    let_go = node("n2", state="DEAD", state_message="Terminated due to idle (no Ray activity)")
    home = node("n3", labels={"factory/pool": "ondemand"})
    earlier = NOW - timedelta(minutes=10)
    assert look(ledger, [node("n1"), home], settings.pools, earlier) == 1
    assert look(ledger, [node("n1")], settings.pools, NOW - timedelta(minutes=5)) == 0  # no news
    assert look(ledger, [let_go], settings.pools, NOW) == 0
    assert look(ledger, [reclaimed, let_go], settings.pools, NOW) == 1
    assert look(ledger, [reclaimed, let_go], settings.pools, NOW) == 0

    provider = Record(settings.database_url)
    labels = {"factory/pool": "spot", "ray.io/market-type": "spot", "ray.io/availability-zone": "a"}
    launched = (NOW + timedelta(minutes=30)).timestamp()
    assert provider.saw(labels, True, "launched", launched, nusd_per_hour=500_000_000)
    assert not provider.saw({**labels, "ray.io/market-type": "on-demand"}, True, "x", launched)
    assert not Record(None).saw(labels, True, "launched", launched)
    (settings.home / "file").touch()
    silent = Record(f"sqlite:///{settings.home / 'file' / 'no.db'}")
    assert not silent.saw(labels, True, "launched", launched)

    from factory.ledger.zones import observations, prices

    found = observations(ledger, "spot")
    assert [(each.up, each.source) for each in found] == [
        (True, "running"),
        (False, "reclaimed"),
        (True, "launched"),
    ]
    later = NOW + timedelta(hours=1)
    assert prices(ledger, later) == {"spot": 500_000_000}
    assert prices(ledger, later + timedelta(days=1)) == {}
    (state,) = zones.states(found, later)
    assert (state.up, state.source, state.nusd_per_hour) == (True, "launched", 500_000_000)
    assert state.share == pytest.approx((9 + 30) / 70)


def test_placement_expects_what_the_record_says(settings: Settings, ledger: Ledger) -> None:
    recorded(ledger, "a", up_now=True, steady=False)
    work = Work.model_validate(
        {"hours": 4, "cpus": 4, "deadline": NOW + timedelta(hours=6), "restart_minutes": 12}
    )
    policy = SpotJobs(settings, ledger)
    expected = policy.estimate(work, NOW)
    assert 0.3 < expected["spot"].relative_cost <= 1.1
    decided = place(work, settings.pools, now=NOW, spot=expected)
    assert any("of on-demand alone" in option.why for option in decided.options)
    assert policy.estimate(work.model_copy(update={"deadline": None}), NOW) == {}


def test_the_pools_that_are_between() -> None:
    document = {"models": {}, "endpoints": {}, "teams": {}, "pools": POOLS}
    settings = parse(json.dumps(document), "t.yaml", Path(), {"FACTORY_HOME": "/nowhere"})
    found = sides(settings, ("spot", "ondemand"))
    assert found is not None
    assert (found.spot, found.firm, found.before) == ("spot", "ondemand", ())
    assert sides(settings, ("ondemand", "spot")) is None  # spot is the dearer one
    assert sides(settings, ("spot",)) is None
    assert tick_s(3600) == 60
    assert tick_s(40 * 3600) == 600


def test_a_watch_holds_what_was_seen_until_the_next_look(settings: Settings) -> None:
    seen = looks("a", [(60, True), (30, False), (10, True)], NOW)
    watch = zones.watch(seen, seen[0].at, NOW, 300, settings.pools["spot"])
    assert "".join(map(str, watch.up["a"])) == "1" * 12 + "0" * 6 + "1" * 3
    assert watch.start_hour == pytest.approx(10 + 20 / 60)
    with pytest.raises(ValueError, match="nothing has been seen"):
        zones.watch([], NOW, NOW, 300, settings.pools["spot"])

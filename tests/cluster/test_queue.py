"""The durable queue and its controller, against a cluster that can fail in every way Ray can."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory.cluster.errors import ClusterError, JobError
from factory.cluster.queue import lease, snapshot
from factory.cluster.queue.controller import Controller, Tick
from factory.cluster.queue.lease import Deposed
from factory.cluster.queue.rayjob import manifest
from factory.cluster.queue.runner import Seen, Sighting
from factory.cluster.queue.spec import JobSpec, check
from factory.cluster.queue.store import Queue, QueuedJob
from factory.cluster.queue.waiting import waits
from factory.config import ConfigError, Settings, parse
from factory.ledger import alerts, budgets, spend
from factory.ledger.store import Ledger, open_ledger

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POOLS = {
    "onprem": {
        "capex_usd": 8760,
        "amortize_months": 12,
        "power_w": 1,
        "usd_per_kwh": 0,
        "people_hours_per_month": 0,
        "cpus": 4,
    }
}  # one dollar an hour


class Crash(BaseException):
    """The controller is killed here."""


class Cluster:
    """Speaks like Ray's job API: unknown ids, refusals, silence, and a head that dies."""

    def __init__(self) -> None:
        self.cluster_id = "one"
        self.attempts: dict[str, Sighting] = {}
        self.begun: list[str] = []
        self.crash_before = self.crash_after = self.silent = False
        self.refuse: str | None = None
        self.words: dict[str, str] = {}

    def start(self, job: QueuedJob, pool: str) -> None:
        self._answer()
        if self.crash_before:
            raise Crash
        if self.refuse:
            raise ClusterError(self.refuse)
        if job.submission_id not in self.attempts:
            self.begun.append(job.submission_id)
            self.attempts[job.submission_id] = Sighting("RUNNING")
        if self.crash_after:
            raise Crash

    def look(self, submission_id: str) -> Sighting | None:
        self._answer()
        return self.attempts.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self.attempts[submission_id] = Sighting("STOPPED")

    def output(self, submission_id: str) -> str:
        return self.words.get(submission_id, "")

    def nodes(self) -> dict[str, Seen]:
        self._answer()
        return {"onprem": Seen(({"cpus": 4.0, "gpus": 0.0},), {})}

    def end(self, submission_id: str, status: str = "SUCCEEDED", code: int = 0) -> None:
        self.attempts[submission_id] = Sighting(status, exit_code=code)

    def reborn(self) -> None:
        self.cluster_id, self.attempts = self.cluster_id + "'", {}

    def _answer(self) -> None:
        if self.silent:
            raise ClusterError("the cluster does not answer")


def settings_with(home: Path, **document: object) -> Settings:
    whole = {
        "models": {},
        "endpoints": {},
        "teams": {"a": {}, "b": {}},
        "pools": POOLS,
        "jobs": {"retries": {"backoff_s": 0}, "keep_attempts_apart_s": 0},
        **document,
    }
    return parse(json.dumps(whole), "t.yaml", home, {"FACTORY_HOME": str(home)})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'queue.db'}")
    yield ledger
    ledger.close()


class Bench:
    """A queue, a cluster and a clock."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings, self.ledger, self.queue = settings, ledger, Queue(ledger)
        self.cluster = Cluster()
        self.now, self.steady = NOW, 0.0
        self.up = True
        self.told: list[alerts.Alert] = []
        self.controller = self.another()

    def another(self, name: str | None = None) -> Controller:
        return Controller(
            self.settings,
            self.ledger,
            lambda: self.cluster if self.up else None,
            name,
            on_alert=self.told.append,
            steady=lambda: self.steady,
        )

    def submit(self, estimate: int | None = None, **spec: object) -> str:
        whole = JobSpec.model_validate({"module": "m", "team": "a", "cpus": 4, **spec})
        check(whole, self.settings, self.now)
        return self.queue.submit(whole, self.now, estimate).id

    def tick(self, seconds: float = 1) -> Tick:
        self.now += timedelta(seconds=seconds)
        self.steady += max(0, seconds)
        return self.controller.tick(self.now)

    def state(self, job_id: str) -> str:
        return self.queue.get(job_id).state


@pytest.fixture
def bench(tmp_path: Path, ledger: Ledger) -> Bench:
    return Bench(settings_with(tmp_path), ledger)


def test_one_after_the_other_with_position_and_reason(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    assert bench.tick().started == (first,)
    bench.tick()
    assert (bench.state(first), bench.state(second)) == ("running", "waiting")
    waiting = bench.queue.get(second)
    assert (waiting.position, "no room" in waiting.reason) == (1, True)
    bench.cluster.end(f"{first}.1")
    assert bench.tick(100).ended == (first,)
    bench.tick(1)
    assert bench.state(second) == "running"
    assert bench.queue.get(second).waited_s == pytest.approx(101)
    (found,) = waits(bench.queue.list(), bench.now, 30)
    assert (found.jobs, found.p95_s, found.p50_s) == (2, pytest.approx(101), 0)


@pytest.mark.parametrize("when", ["crash_before", "crash_after"])
def test_a_controller_killed_in_a_start_loses_nothing_and_runs_nothing_twice(
    bench: Bench, when: str
) -> None:
    job = bench.submit()
    setattr(bench.cluster, when, True)
    with pytest.raises(Crash):
        bench.tick()
    setattr(bench.cluster, when, False)
    bench.controller = bench.another()
    assert not bench.tick().leading  # the dead one's lease still stands
    assert bench.tick(20).leading
    bench.tick()
    assert bench.cluster.begun == [f"{job}.1"]
    assert (bench.state(job), bench.queue.get(job).attempt) == ("running", 1)


def test_the_heads_death_is_an_interruption_and_the_job_runs_again(bench: Bench) -> None:
    job = bench.submit()
    bench.tick()
    bench.up = False
    bench.tick(5)
    assert bench.state(job) == "starting"  # nobody knows yet what became of it
    bench.up = True
    bench.cluster.reborn()
    bench.tick(5)
    bench.tick(2)
    found = bench.queue.get(job)
    assert (found.attempt, found.interruptions, found.failures) == (2, 1, 0)
    assert bench.cluster.begun == [f"{job}.1", f"{job}.2"]


def test_a_cluster_that_does_not_answer_is_waited_for(bench: Bench) -> None:
    job = bench.submit()
    bench.cluster.silent = True
    assert "does not answer" in (bench.tick().trouble or "")
    assert bench.state(job) == "waiting"
    bench.cluster.silent = False
    assert bench.tick().started == (job,)


def test_a_refused_submission_is_a_failure_with_its_words(bench: Bench) -> None:
    job = bench.submit()
    bench.cluster.refuse = "the package is too large"
    for _ in range(4):
        bench.tick(2)
    assert bench.state(job) == "dead"
    assert "failed 3 times, last: the package is too large" in bench.queue.get(job).reason
    bench.cluster.refuse = None
    bench.queue.retry(job, bench.now)
    assert bench.tick().started == (job,)
    with pytest.raises(ClusterError, match="only a dead job"):
        bench.queue.retry(job, bench.now)


def test_a_deposed_controller_writes_nothing(bench: Bench, ledger: Ledger) -> None:
    old = lease.acquire(ledger, "queue", "old", NOW, 15)
    assert old is not None
    assert lease.acquire(ledger, "queue", "new", NOW + timedelta(seconds=5), 15) is None
    assert lease.acquire(ledger, "queue", "new", NOW + timedelta(seconds=20), 15) is not None
    job = bench.queue.get(bench.submit())
    with pytest.raises(Deposed):
        bench.queue.save(old, [job])


def test_a_lease_from_a_clock_that_ran_ahead_does_not_lock_everybody_out(ledger: Ledger) -> None:
    lease.acquire(ledger, "queue", "ahead", NOW + timedelta(days=365), 15)
    assert lease.acquire(ledger, "queue", "other", NOW, 15) is not None


def test_a_driver_that_takes_nothing_starts_in_a_full_cluster(bench: Bench) -> None:
    full, driver = bench.submit(), bench.submit(cpus=0)
    assert bench.tick().started == (full, driver)
    bench.tick(3600)
    assert bench.queue.get(driver).cost_nusd == 0


def test_cancelling_waits_for_the_process_and_a_waiting_job_just_leaves(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.tick()
    assert bench.queue.cancel(second, bench.now)
    assert bench.queue.cancel(first, bench.now)
    assert (bench.state(first), bench.state(second)) == ("starting", "cancelled")
    bench.tick()
    bench.tick()
    assert bench.state(first) == "cancelled"
    assert not bench.queue.cancel(first, bench.now)


def test_a_higher_class_stops_a_lower_one_which_comes_back(bench: Bench) -> None:
    low = bench.submit(priority="low")
    bench.tick()
    high = bench.submit(priority="normal")
    assert bench.tick().preempted == (low,)
    bench.tick()
    bench.tick()
    assert (bench.state(low), bench.state(high)) == ("waiting", "running")
    bench.cluster.end(f"{high}.1")
    bench.tick()
    bench.tick()
    assert bench.queue.get(low).attempt == 2


def test_cost_is_charged_while_it_runs_and_counts_in_the_teams_budget(
    tmp_path: Path, ledger: Ledger
) -> None:
    teams = {"a": {"budget": {"daily_usd": 3}}, "b": {}}
    bench = Bench(settings_with(tmp_path, teams=teams), ledger)
    dead = bench.submit(estimate=4 * 10**9)
    assert bench.tick().ended == (dead,)
    assert "more than team 'a' may ever spend" in bench.queue.get(dead).reason
    first = bench.submit(estimate=2 * 10**9)
    second = bench.submit(estimate=2 * 10**9, cpus=0.5)
    bench.tick()
    bench.tick(1800)
    assert "the budget of team:a for the day" in bench.queue.get(second).reason
    cost = bench.queue.get(first).cost_nusd
    assert cost == pytest.approx(0.5 * 12 / 12 * 10**9, rel=0.01)
    (standing,) = budgets.status(ledger, bench.settings, bench.now)
    assert standing.spent_nusd == cost
    bench.tick(-900)  # the clock goes back: nothing is charged again
    assert bench.queue.get(first).cost_nusd == cost
    bench.tick(3 * 3600)  # over the limit: it stops, and waits for the new day
    bench.tick(1)
    assert bench.state(first) == "waiting"
    bench.tick(1)
    assert "resets at 2026-11-25" in bench.queue.get(first).reason
    assert spend.reconcile(ledger) == []
    assert [alert.fraction for alert in alerts.raised(ledger)] == [0.5, 0.8]
    assert bench.told == alerts.raised(ledger)
    bench.now = NOW + timedelta(days=1)
    assert first in bench.tick().started


def test_a_clock_that_jumps_ahead_charges_no_hour(bench: Bench) -> None:
    job = bench.submit()
    bench.tick()
    bench.tick(1200)
    cost = bench.queue.get(job).cost_nusd
    assert cost > 0
    bench.now += timedelta(days=2)
    bench.tick(1200)
    assert bench.queue.get(job).cost_nusd == pytest.approx(2 * cost, rel=0.001)
    bench.now -= timedelta(days=2)
    bench.tick(1200)
    assert bench.queue.get(job).cost_nusd == pytest.approx(3 * cost, rel=0.001)
    assert spend.reconcile(bench.ledger) == []


def test_a_job_stops_at_its_own_limit(bench: Bench) -> None:
    job = bench.submit(max_usd=1)
    bench.tick()
    bench.tick(3700)
    bench.tick()
    bench.tick()
    assert bench.state(job) == "dead"
    assert "may cost 1" in bench.queue.get(job).reason


def test_windows_and_deadlines(bench: Bench) -> None:
    night = bench.submit(window="off-peak", cpus=1)
    late = bench.submit(deadline=NOW + timedelta(hours=1), cpus=4)
    bench.submit(cpus=4, priority="high")
    bench.tick()
    assert "which opens at 2026-11-24T20:00:00Z" in bench.queue.get(night).reason
    bench.tick(3700)
    assert bench.state(late) == "dead"
    assert "passed while it waited" in bench.queue.get(late).reason


def test_a_job_with_a_deadline_leaves_spot_when_it_must(tmp_path: Path, ledger: Ledger) -> None:
    rented = {"provider": "aws", "max_nodes": 2, "cpus": 4}
    pools = {
        "spot": {**rented, "usd_per_hour": 1, "spot_policy": "spot"},
        "ondemand": {**rented, "usd_per_hour": 3},
    }
    bench = Bench(settings_with(tmp_path, pools=pools), ledger)
    node = Seen(({"cpus": 4.0, "gpus": 0.0},), {})
    bench.cluster.nodes = lambda: {"spot": node, "ondemand": node}  # type: ignore[method-assign]
    job = bench.submit(duration_s=3600, deadline=NOW + timedelta(hours=2))
    bench.tick()
    assert bench.queue.get(job).pool == "spot"
    bench.cluster.end(f"{job}.1", "STOPPED")  # taken away after an hour, without a word
    bench.tick(3200)
    bench.tick()
    assert bench.queue.get(job).pool == "ondemand"  # there is no time for a second surprise
    calm = bench.submit(duration_s=3600, deadline=bench.now + timedelta(hours=2))
    bench.tick()
    assert bench.queue.get(calm).pool == "spot"


def test_jobs_go_elsewhere_while_spot_is_out_and_come_back(tmp_path: Path, ledger: Ledger) -> None:
    rented = {"provider": "aws", "max_nodes": 2, "cpus": 4}
    pools = {
        "spot": {**rented, "usd_per_hour": 1, "spot_policy": "spot"},
        "ondemand": {**rented, "usd_per_hour": 3},
    }
    quick = {"retries": {"backoff_s": 0}, "keep_attempts_apart_s": 0, "autoscaler": True}
    bench = Bench(settings_with(tmp_path, pools=pools, jobs=quick), ledger)
    node = Seen(({"cpus": 4.0, "gpus": 0.0},), {})
    there: dict[str, Seen] = {}
    bench.cluster.nodes = lambda: there  # type: ignore[method-assign]
    first = bench.submit()
    bench.tick()
    assert bench.queue.get(first).pool == "spot"  # there is no node yet, but one can be had
    there["spot"] = Seen((), {}, capped=True)
    bench.tick(10)
    assert bench.queue.get(first).reason == (
        "pool spot has lost its last node and none can be had; goes on in ondemand"
    )
    bench.cluster.end(f"{first}.1", "STOPPED")
    bench.tick()
    bench.tick()
    assert bench.queue.get(first).pool == "ondemand"
    second = bench.submit()
    bench.tick()
    assert bench.queue.get(second).pool == "ondemand"
    there["spot"] = node
    third = bench.submit()
    bench.tick()
    assert bench.queue.get(third).pool == "spot"
    there["spot"] = Seen((), {}, capped=True)
    there["ondemand"] = Seen((), {}, capped=True)
    bench.tick(10)
    assert bench.queue.get(third).state != "stopping"  # nowhere is better than here


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"deadline": NOW - timedelta(days=1)}, "is past"),
        ({"deadline": NOW + timedelta(hours=9), "window": "off-peak", "duration_s": 7200}, "kept"),
        ({"cpus": 5}, "could never start: .* larger than any"),
        ({"team": "nobody"}, "not under teams"),
        ({"priority": "vip"}, "not under jobs.classes"),
        ({"window": "noon"}, "not under jobs.windows"),
        ({"pools": ("moon",)}, "not under pools"),
        ({"sensitivity": "restricted"}, "no pool fits"),
    ],
)
def test_what_could_never_run_is_refused(bench: Bench, spec: dict[str, object], words: str) -> None:
    with pytest.raises(JobError, match=words):
        bench.submit(**spec)
    assert bench.queue.list() == []


def test_a_circle_of_cohorts_is_refused_with_the_configuration(tmp_path: Path) -> None:
    circle = {"x": {"cohort": "y"}, "y": {"cohort": "x"}}
    with pytest.raises(ConfigError, match="circle"):
        settings_with(tmp_path, jobs={"cohorts": circle})


def test_the_working_folder_is_kept_as_it_was(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.py").write_text("one")
    (work / ".rayignore").write_text("*.bin\n")
    (work / "big.bin").write_bytes(b"x")
    code = snapshot.take(tmp_path / "home", work)
    assert snapshot.take(tmp_path / "home", work) == code
    (work / "a.py").write_text("two")
    other = snapshot.take(tmp_path / "home", work)
    kept = snapshot.folder(tmp_path / "home", code)
    assert (kept / "a.py").read_text() == "one"
    assert not (kept / "big.bin").exists()
    assert snapshot.prune(tmp_path / "home", {code}, before=0) == []
    assert snapshot.prune(tmp_path / "home", {code}, before=time.time() + 9) == [other]
    with pytest.raises(ClusterError, match="is gone"):
        snapshot.folder(tmp_path / "home", other)
    with pytest.raises(ClusterError, match="does not exist"):
        snapshot.take(tmp_path / "home", tmp_path / "absent")


def test_the_same_spec_is_a_rayjob_for_kueue(tmp_path: Path) -> None:
    spec = JobSpec(
        module="pipelines.finetune",
        args=("--max-steps", "5"),
        team="a",
        workers=2,
        cpus=2,
        gpus=1,
        window="off-peak",
    )
    found = manifest(spec, settings_with(tmp_path), "tune-1")
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "a"
    assert found["spec"]["suspend"] is True
    assert found["spec"]["entrypoint"] == "python -m pipelines.finetune --max-steps 5"
    group = found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"]) == (2, 2)
    assert found["metadata"]["annotations"] == {"factory/window": "off-peak"}

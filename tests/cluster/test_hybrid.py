"""One cluster at home and on spot under Ray's own autoscaler; only the cloud's API is not real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_cloud import POOLS, Sky, count_often, started
from benchmarks.stockout import CLUSTER, Work, ask, joined
from factory.cluster import meter, nodehours
from factory.cluster.clouds.caps import Caps
from factory.cluster.clouds.notice import Notice, drain
from factory.cluster.local import Cluster
from factory.cluster.queue import submission
from factory.cluster.queue.spec import JobSpec
from factory.cluster.queue.store import QueuedJob
from factory.config import Settings, load
from factory.ledger import spend
from factory.ledger.nodes import counted, spans, usage
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import Ledger, open_ledger

pytestmark = pytest.mark.ray

TYPES = {
    "onprem": {"min_workers": 2, "max_workers": 2},
    "spot": {"min_workers": 2, "max_workers": 2, "priority": 2},
    "ondemand": {"max_workers": 1, "priority": 1},
}
PRICE_NUSD = 1_000
"""List price of an answer."""
ENGINE_CPUS = 0.5

TUNING = """
import json, os, time
from pathlib import Path
import ray

home = Path(os.environ["FACTORY_HOME"])
selector = json.loads(os.environ["FACTORY_LABEL_SELECTOR"])
ray.init(log_to_driver=False, namespace=os.environ["RAY_NAMESPACE"])


def note(file, what):
    with (home / file).open("a") as out:
        out.write(json.dumps(what) + "\\n")


@ray.remote(num_cpus=1, label_selector=selector)
class Run:
    def __init__(self):
        saved = home / "step"
        self.step = int(saved.read_text()) if saved.exists() else 0
        node = ray.get_runtime_context().get_node_id()
        team = ray.get_runtime_context().namespace
        note("starts", {"node": node, "step": self.step, "at": time.time(), "team": team})

    def advance(self):
        self.step += 1
        draft = home / "step.draft"
        draft.write_text(str(self.step))
        draft.replace(home / "step")
        return self.step


def run():
    return Run.remote()


here = run()
step, last = 0, None
while not (home / "enough").exists():
    try:
        step, last = ray.get(here.advance.remote()), time.time()
        time.sleep(0.05)
    except ray.exceptions.RayActorError:
        note("ends", last)
        here = run()
note("ends", last)
print("trained to step", step, flush=True)
"""
"""A run that saves every step and starts again elsewhere when its node is gone."""


def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.1)
    return found


SERVING = """
import json, sys, time
from pathlib import Path
import ray
from ray import serve

home = Path(sys.argv[1])
ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR")


class Engine:
    def __call__(self):
        return ray.get_runtime_context().get_node_id()


serve.start(http_options={"location": "NoServer"})
here = {"num_cpus": float(sys.argv[3]), "label_selector": {"factory/pool": "onprem"}}
app = serve.deployment(Engine).options(name="engine-greeter", ray_actor_options=here).bind()
handle = serve.run(app, route_prefix=None)
answers, failed = [], []
while not (home / "enough").exists():
    begun = time.time()
    try:
        answers.append((begun, handle.remote().result(timeout_s=30), time.time() - begun))
    except Exception as error:
        failed.append(repr(error))
    (home / "serves").touch()
    time.sleep(0.05)
draft = home / "served.draft"
draft.write_text(json.dumps({"answers": answers, "failed": failed}))
draft.replace(home / "served")
"""
"""A small engine at home that says where it is, and somebody who asks it all the time."""


@contextmanager
def serving(head: Cluster, home: Path) -> Iterator[None]:
    """The app and who asks it, in a process of their own."""
    command = [sys.executable, "-c", SERVING, str(home), head.address, str(ENGINE_CPUS)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """For the processes that the queue and the head start."""
    file = tmp_path / "factory.yaml"
    file.write_text(POOLS + f"models: {{}}\nteams: {{}}\nendpoints: {{}}\nhome: {tmp_path}\n")
    return file


@pytest.fixture
def settings(config: Path) -> Settings:
    return load(config)


@pytest.fixture
def sky(settings: Settings) -> Sky:
    return Sky(settings.home / "sky.json")


@pytest.fixture
def head(settings: Settings, config: Path, sky: Sky) -> Iterator[Cluster]:
    quick = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_health_check_period_ms": "1000"}
    with started(
        settings, sky, config=config, variables=quick, file=CLUSTER, types=TYPES, cool_down_s=1
    ) as cluster:
        count_often(settings, cluster, every_s=0.5)
        yield cluster


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(settings.database_url)
    yield ledger
    ledger.close()


def pools(head: Cluster, settings: Settings) -> dict[str, str]:
    """Pool by node, of those that live."""
    return {
        node.node_id: node.pool
        for node in meter.seen(head, settings.pools)
        if node.alive and node.cpus
    }


def test_serving_holds_the_job_goes_on_and_the_bill_is_right_when_spot_goes(
    head: Cluster, settings: Settings, config: Path, sky: Sky, ledger: Ledger, work: Path
) -> None:
    (work / "probing" / "tuning.py").write_text(TUNING)
    home = settings.home
    caps = Caps(home / "cluster.yaml")
    with serving(head, home), joined(head) as ray:
        until(lambda: "spot" in pools(head, settings).values(), "a spot node")
        spec = JobSpec(module="probing.tuning", team="default", cpus=1, pools=("spot",))
        job = submission.submit(settings, ledger, spec, working_dir=work, config=config)
        whole = ["onprem"] * 2 + ["spot"] * 2
        until(lambda: sorted(pools(head, settings).values()) == whole, "the whole cluster")
        until(lambda: (home / "step").exists() and int((home / "step").read_text()) > 5, "step 5")
        until(lambda: (home / "serves").exists(), "an answer of the app")

        # The cloud takes the node of the run, and has no other to give.
        first = _starts(home)[0]["node"]
        assert pools(head, settings)[first] == "spot"
        sky.set(out=["spot"])
        drain(head.address, first, Notice("terminate", 2))
        sky.set(out=["spot"], reclaimed=[first])
        until(lambda: len(_starts(home)) > 1, "the second start")
        until(lambda: first not in pools(head, settings), "the end of the first node")
        second = _starts(home)[1]
        assert second["team"] == "default"
        assert second["node"] != first
        assert second["step"] > 5
        assert pools(head, settings)[second["node"]] == "spot"

        # Spot is capped at what is left, work that may be elsewhere goes there, and spot returns.
        until(lambda: "spot" in caps.state().get("original", {}), "the cap")
        other = ask(ray, "spot", "on-demand")
        assert ray.get(other.market.remote(), timeout=60) == "on-demand"
        sky.set()
        until(lambda: list(pools(head, settings).values()).count("spot") == 2, "spot's return")
        until(lambda: caps.state()["original"] == {}, "the end of the cap")

        (home / "enough").touch()
        done = submission.follow(settings, ledger, job.id, timeout_s=60)
        assert (submission.succeeded(done).attempt, done.interruptions) == (1, 0)
        until((home / "served").exists, "the end of the questions")
        served = json.loads((home / "served").read_text())
        assert served["failed"] == []
        where = pools(head, settings)
        assert {where[node] for _, node, _ in served["answers"]} == {"onprem"}
        settle(ledger, served["answers"])
        nodes = counted_after(time.time(), head, settings, ledger)
    check_nodes(nodes, settings, ledger)
    dead = {node.node_id: _end(node) for node in nodes if not node.alive}
    ends = _lines(home / "ends")
    lives = [
        dead.get(start["node"], end) - start["at"]
        for start, end in zip(_starts(home), ends, strict=True)
    ]
    check_job(done, settings, ledger, lives)
    check_requests(served["answers"], settings, ledger)


def settle(ledger: Ledger, answers: list[tuple[float, str, float]]) -> None:
    """Every answer as a request of the ledger, as the gateway would settle it."""
    who = {"team": "default", "endpoint": "greeter", "model": "greeter", "cost_nusd": PRICE_NUSD}
    entries = []
    for number, (begun, _, took) in enumerate(answers):
        this = {
            "request_id": f"request-{number}",
            "created_at": datetime.fromtimestamp(begun, UTC),
            "latency_ms": took * 1000,
            "tier": 1,
            **who,
        }
        request = RequestRecord(**this, status="ok", http_status=200)
        charge = ChargeRecord(**this, charge_id=f"charge-{number}", seq=0, kind="generation")
        entries.append((request, [charge]))
    ledger.record_many(entries)


def counted_after(
    moment: float, head: Cluster, settings: Settings, ledger: Ledger
) -> list[nodehours.Node]:
    """All nodes that there ever were, once the meter has counted them until then."""

    def found() -> list[nodehours.Node] | None:
        reached = counted(ledger)
        nodes = meter.seen(head, settings.pools)
        behind = [
            node
            for node in nodes
            if node.machine not in reached
            or reached[node.machine].timestamp() < (moment if node.alive else _end(node))
        ]
        return None if behind else nodes

    nodes: list[nodehours.Node] = until(found, "the meter's next round")
    return nodes


def check_nodes(nodes: list[nodehours.Node], settings: Settings, ledger: Ledger) -> None:
    """Every second that a node lived is in the ledger once, at its pool's price."""
    assert sum(not node.alive for node in nodes) == 1
    expected: dict[str, float] = {}
    reached = counted(ledger)
    for node in nodes:
        assert node.started is not None
        end = reached[node.machine].timestamp() if node.alive else _end(node)
        lived = end - node.started.timestamp()
        expected[node.pool] = expected.get(node.pool, 0.0) + lived
    used = {pool.pool: pool for pool in usage(ledger).pools}
    assert set(used) == set(expected) == {"onprem", "spot", "ondemand"}
    for name, pool in used.items():
        assert pool.hours * 3600 == pytest.approx(expected[name], abs=0.01)
        price = settings.pools[name].nusd_per_hour
        assert pool.total_nusd == pytest.approx(pool.hours * price, abs=1000)
        assert pool.workload_nusd + pool.idle_nusd + pool.overhead_nusd == pool.total_nusd
        assert pool.workload_nusd > 0


def check_job(job: QueuedJob, settings: Settings, ledger: Ledger, lives: list[float]) -> None:
    """It is charged from its start to its end, and its nodes' hours agree with that.

    `lives`: seconds that each start of its run held its node.
    """
    price = settings.pools["spot"].nusd_per_hour / 3600
    assert job.started_at is not None
    assert job.ended_at is not None
    ran = (job.ended_at - job.started_at).total_seconds()
    assert job.cost_nusd == pytest.approx(ran * price, abs=100)
    assert spend.reconcile(ledger) == []

    held = {line.name: line.usage_nusd for line in usage(ledger).lines if line.kind == "job"}
    assert set(held) == {job.submission_id, Work.__name__}
    with ledger.read() as connection:
        beat = max((span.ends_at - span.starts_at).total_seconds() for span in spans(connection))
    # What is held at the end of a span is held all of it: a span more or less at the beginning and
    # at the end of each start, on a busy machine.
    doubt = 2 * len(lives) * beat * price
    assert held[job.submission_id] == pytest.approx(sum(lives) * price, abs=doubt)
    assert held[job.submission_id] <= job.cost_nusd + doubt


def check_requests(
    answers: list[tuple[float, str, float]], settings: Settings, ledger: Ledger
) -> None:
    """They are charged by list price, and bear what their engine's node cost meanwhile."""
    found = {line.kind: line for line in usage(ledger).lines if line.name == "greeter"}
    assert found["model"].requests == len(answers)
    assert found["model"].allocation_nusd == len(answers) * PRICE_NUSD
    worked = sum(took for _, _, took in answers)
    price = settings.pools["onprem"].nusd_per_hour / 3600 * ENGINE_CPUS
    assert found["model"].usage_nusd == pytest.approx(worked * price, abs=100)
    assert found["endpoint"].usage_nusd == found["model"].usage_nusd


def _end(node: nodehours.Node) -> float:
    assert node.ended is not None
    return node.ended.timestamp()


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _starts(home: Path) -> list[dict[str, Any]]:
    return _lines(home / "starts")

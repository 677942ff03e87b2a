"""A session and what a job left behind, on a real Ray head: announced, stopped, sealed."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory.cluster import local, meter
from factory.cluster.idle import shutdown as idle
from factory.cluster.idle.leftovers import check
from factory.cluster.jobs import Jobs
from factory.config import Idle, Settings
from factory.ledger.store import open_ledger

pytestmark = pytest.mark.ray

LEAVES = """
import ray
from ray.util.placement_group import placement_group
ray.init(namespace="mine", log_to_driver=False)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside
kept = placement_group([{"CPU": 0.5}], lifetime="detached", name="kept")
ray.get(kept.ready())
@ray.remote(num_cpus=0.5)
class Index:
    def ping(self): return 1
inside = Inside(kept, placement_group_bundle_index=0)
options = dict(name="index", lifetime="detached", scheduling_strategy=inside)
ray.get(Index.options(**options).remote().ping.remote())
"""
JOINS = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=0)
def once(): return 1
ray.get(once.remote())
print("joined", flush=True)
time.sleep(600)
"""


def test_a_session_and_leftovers_on_a_real_cluster(line: Settings, work: Path) -> None:
    cluster = local.require(line)
    (work / "probing" / "leaves.py").write_text(LEAVES)
    jobs = Jobs(line, cluster)
    jobs.wait(jobs.submit("probing.leaves", working_dir=work), timeout_s=90)
    notebook = subprocess.Popen(
        [sys.executable, "-c", JOINS, cluster.address],
        env=local.environment(line, None),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    policy = Idle(session_after_s=0.001, leftover_after_s=0.001, announce_s=0)
    settings = line.model_copy(update={"idle": policy})
    try:
        assert notebook.stdout is not None
        assert notebook.stdout.readline() == "joined\n"
        with closing(open_ledger(settings.database_url)) as ledger:
            kinds = ["actor", "placement group", "session"]

            def listed(act: bool) -> dict[str, str]:
                found = check(settings, ledger, datetime.now(UTC), act=act)
                return {each.thing.kind: each.failed or each.decision.act for each in found}

            end = time.monotonic() + 30
            while listed(act=False) != dict.fromkeys(kinds, "announce"):
                assert time.monotonic() < end, listed(act=False)
                time.sleep(0.2)  # Ray's task table is written now and then
            (node,) = [each for each in meter.seen(cluster, line.pools) if each.alive]
            assert [(use.kind, use.cpus) for use in node.uses] == [("job", 0.5)]
            assert "session" in idle.observe(line, ledger, cluster).busy[0]
            assert listed(act=True) == dict.fromkeys(kinds, "announce")
            assert listed(act=True) == dict.fromkeys(kinds, "stop")
            assert notebook.wait(20) != 0
            assert len(idle.stops(ledger)) == 3
            assert {each["what"].split()[0] for each in idle.stops(ledger)} == {
                "actor",
                "placement",
                "session",
            }
            while left := listed(act=False):
                assert time.monotonic() < end + 30, left
                time.sleep(0.2)
    finally:
        notebook.kill()
        notebook.wait()

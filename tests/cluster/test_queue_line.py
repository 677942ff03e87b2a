"""The queue on a real Ray head: one job to its end, and one through the death of everything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from factory.cluster import local, processes
from factory.cluster.errors import JobError
from factory.cluster.queue import submission
from factory.cluster.queue.spec import JobSpec
from factory.cluster.queue.store import Queue
from factory.config import Settings
from factory.ledger import spend
from factory.ledger.schema import LEASES
from factory.ledger.store import Ledger, open_ledger

pytestmark = pytest.mark.ray

SLOW = """
import os, time
from pathlib import Path
attempt = Path(os.environ["FACTORY_HOME"], "attempts")
with attempt.open("a") as out:
    out.write(f"{os.getpid()}\\n")
while not Path(os.environ["FACTORY_HOME"], "go").exists():
    time.sleep(0.1)
print("done by", os.environ["FACTORY_JOB_ID"], flush=True)
"""


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(settings.database_url)
    yield ledger
    ledger.close()


def until(condition: object, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.1)


def test_a_job_survives_its_controller_and_the_head(
    settings: Settings, ledger: Ledger, work: Path
) -> None:
    (work / "probing" / "slow.py").write_text(SLOW)
    local.start(settings, cpus=2)
    try:
        slow = JobSpec(module="probing.slow", team="default", cpus=2)
        job = submission.submit(settings, ledger, slow, working_dir=work)
        behind = JobSpec(module="probing.probe", args=("0",), team="default", cpus=1)
        second = submission.submit(settings, ledger, behind, working_dir=work)
        queue = Queue(ledger)
        until(lambda: (settings.home / "attempts").exists(), "the first attempt")
        until(lambda: "no room" in queue.get(second.id).reason, "the second's reason")

        head = local.require(settings)
        with ledger.read() as connection:
            holder = connection.scalar(select(LEASES.c.holder))
        os.kill(int(str(holder).split(":")[1]), signal.SIGKILL)
        os.kill(head.pid, signal.SIGKILL)
        until(lambda: processes.started(head.pid) is None, "the head's end")

        local.start(settings, cpus=2)  # ends what the old head left, so nothing runs twice
        first = int((settings.home / "attempts").read_text().split()[0])
        assert processes.started(first) is None
        (settings.home / "go").touch()
        said: list[str] = []
        done = submission.follow(settings, ledger, job.id, output=said.append, timeout_s=90)
        assert submission.succeeded(done).attempt == 2
        assert (done.interruptions, done.failures) == (1, 0)
        assert f"done by {job.id}" in "".join(said)
        assert len((settings.home / "attempts").read_text().split()) == 2
        assert submission.follow(settings, ledger, second.id, timeout_s=60).state == "succeeded"
        assert done.cost_nusd > 0
        assert spend.reconcile(ledger) == []

        bad = JobSpec(module="probing.nothing", team="default")
        job = submission.submit(settings, ledger, bad, working_dir=work)
        with pytest.raises(JobError, match=r"ended as dead: the module probing\.nothing does not"):
            submission.succeeded(submission.follow(settings, ledger, job.id, timeout_s=60))
        too_big = JobSpec(module="probing.slow", team="default", cpus=64)
        with pytest.raises(JobError, match="could never start"):
            submission.submit(settings, ledger, too_big, working_dir=work)
    finally:
        local.stop(settings)

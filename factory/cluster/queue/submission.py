"""Submitting to the queue and following to the end: what `factory jobs submit` and the SDK do.

    job = submit(settings, ledger, spec, working_dir=Path(), config=file)
    follow(settings, ledger, job.id, output=sys.stdout.write, say=print)

A controller is started in the background when none is at work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from factory.catalog.code import code_state, declaration
from factory.cluster import local, processes
from factory.cluster.errors import ClusterError, JobError
from factory.cluster.jobs import Jobs
from factory.cluster.queue import eligibility, lease, snapshot
from factory.cluster.queue.controller import LEASE, capacities
from factory.cluster.queue.runner import totals
from factory.cluster.queue.spec import JobSpec, check
from factory.cluster.queue.store import ACTIVE, ON_CLUSTER, Queue, QueuedJob
from factory.config import Settings
from factory.ledger.store import Ledger, open_ledger


def default_team(settings: Settings) -> str:
    """Who is charged when nobody is named: the first team of the configuration."""
    return next(iter(settings.teams), "default")


def submit(
    settings: Settings,
    ledger: Ledger,
    spec: JobSpec,
    *,
    working_dir: Path = Path(),
    config: Path | None = None,
) -> QueuedJob:
    """Check a job, keep its code, append it to the queue and see that somebody drives it.

    Raises `ClusterError` when no cluster runs or the job could never start.
    """
    cluster = local.require(settings)
    now = datetime.now(UTC)
    check(spec, settings, now, capacities(settings, totals(settings, cluster), []))
    env = {**declaration(code_state(os.environ)), **spec.env}
    code = snapshot.take(settings.home, working_dir)
    queue = Queue(ledger)
    seconds = spec.duration_s or queue.usual_seconds(spec.module)
    cost = eligibility.estimate_nusd(settings, spec, seconds, now)
    job = queue.submit(spec.model_copy(update={"code": code, "env": env}), now, cost)
    drive(settings, ledger, config)
    return job


def drive(settings: Settings, ledger: Ledger, config: Path | None = None) -> bool:
    """Start a controller in the background unless one is at work or nothing is to do.

    It belongs to the cluster: `factory down` ends it. True when one was started.
    """
    cluster = local.current(settings)
    if cluster is None or lease.held(ledger, LEASE, datetime.now(UTC)):
        return False
    if not Queue(ledger).list(ACTIVE):
        return False
    env = local.environment(settings, config) | {processes.MARK: cluster.id}
    log = settings.home / "run" / "queue.log"
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "factory.cluster.queue.drive"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return True


def resume(settings: Settings, config: Path | None = None) -> bool:
    """After a start of the cluster: go on with what the queue still has."""
    ledger = open_ledger(settings.database_url)
    try:
        return drive(settings, ledger, config)
    finally:
        ledger.close()


def follow(
    settings: Settings,
    ledger: Ledger,
    job_id: str,
    *,
    output: Callable[[str], object] | None = None,
    say: Callable[[str], object] = lambda _: None,
    config: Path | None = None,
    timeout_s: float = float("inf"),
) -> QueuedJob:
    """Tell why the job waits and print what its attempts print, until it has ended.

    Interrupting the caller leaves the job in the queue. Raises `ClusterError` after `timeout_s`.
    """
    queue = Queue(ledger)
    until = time.monotonic() + timeout_s
    told: tuple[str, str] | None = None
    shown = 0
    while True:
        job = queue.get(job_id)
        if (job.state, job.reason) != told:
            told = (job.state, job.reason)
            say(f"{job.state}: {job.reason}")
        cluster = local.current(settings)
        if output is not None and cluster is not None and job.attempt > shown:
            jobs = Jobs(settings, cluster)
            if jobs.find(job.submission_id) is not None:
                shown = job.attempt
                try:
                    jobs.follow(job.submission_id, output)
                except ClusterError as error:
                    say(str(error))
                continue
        if job.done:
            return job
        if time.monotonic() > until:
            raise ClusterError(f"job {job_id} is still {job.state} after {timeout_s:.0f} s")
        drive(settings, ledger, config)
        time.sleep(0.3)


def succeeded(job: QueuedJob) -> QueuedJob:
    """The job. Raises `JobError` when it ended in any other way."""
    if job.state != "succeeded":
        raise JobError(
            f"job {job.id} ended as {job.state}: {job.reason} "
            f"(`factory jobs logs {job.id}` shows all it printed)"
        )
    return job


def logs(settings: Settings, ledger: Ledger, job_id: str) -> str:
    """What the newest attempt of a job printed; also of jobs that Ray alone knows."""
    job = Queue(ledger).find(job_id)
    if job is not None and job.attempt == 0:
        return ""
    jobs = Jobs(settings, local.require(settings))
    return jobs.logs(job_id if job is None else job.submission_id)


def cancel(settings: Settings, ledger: Ledger, job_id: str) -> bool:
    """Ask for a job to end; False when it had ended already."""
    queue = Queue(ledger)
    job = queue.find(job_id)
    if job is None:
        return Jobs(settings, local.require(settings)).cancel(job_id)
    asked = queue.cancel(job_id, datetime.now(UTC))
    if job.state in ON_CLUSTER:
        drive(settings, ledger)
    return asked

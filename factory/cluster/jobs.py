"""Work on the cluster through Ray's job API.

    jobs = Jobs(settings, require(settings))
    job_id = jobs.submit("pipelines.finetune", ["--config", "finetune.yaml"])
    jobs.wait(job_id, output=sys.stdout.write)

The same as `ray job submit --working-dir . -- python -m pipelines.finetune …`, plus the
variables by which the job finds this home and configuration.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factory.catalog.code import code_state, declaration
from factory.cluster.errors import ClusterError, JobError
from factory.cluster.local import Cluster
from factory.config import Settings

_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell users of every upload and socket."""
_FINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True, slots=True)
class Job:
    """One submitted job as Ray knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    message: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None = None
    session: bool = False
    """A driver that joined the cluster (a notebook, a script) and was not submitted."""

    @property
    def done(self) -> bool:
        """True when the status cannot change any more."""
        return self.status in _FINAL


class Jobs:
    """The jobs of one running cluster. Every method raises `ClusterError` when it is gone."""

    def __init__(self, settings: Settings, cluster: Cluster, config: Path | None = None) -> None:
        self._settings = settings
        self._cluster = cluster
        self._config = config

    def submit(
        self,
        module: str,
        args: Sequence[str] = (),
        *,
        working_dir: Path = Path(),
        env: dict[str, str] | None = None,
        submission_id: str | None = None,
    ) -> str:
        """Upload `working_dir` and run `python -m module args` in it. Returns the job's id.

        With a `submission_id` that is taken, Ray refuses.

        Raises `ClusterError` when the folder is missing or too large, or Ray refuses.
        """
        folder = working_dir.resolve()
        if not folder.is_dir():
            raise ClusterError(f"the working folder '{folder}' does not exist")
        variables = {
            "FACTORY_HOME": str(self._settings.home),
            **declaration(code_state(os.environ)),
            **(env or {}),
        }
        if self._config is not None:
            variables["FACTORY_CONFIG"] = str(self._config.absolute())
        with self._explained():
            return str(
                self._client().submit_job(
                    entrypoint=shlex.join(["python", "-m", module, *args]),
                    runtime_env={"working_dir": str(folder), "env_vars": variables},
                    metadata={"module": module},
                    submission_id=submission_id,
                )
            )

    def list(self) -> list[Job]:
        """Every job the cluster remembers, newest first."""
        with self._explained():
            found = [_job(details) for details in self._client().list_jobs()]
        oldest = datetime.min.replace(tzinfo=UTC)
        return sorted(found, key=lambda job: job.started or oldest, reverse=True)

    def get(self, job_id: str) -> Job:
        """One job. Raises `ClusterError` when the cluster does not know it."""
        with self._explained(job_id):
            return _job(self._client().get_job_info(job_id))

    def find(self, job_id: str) -> Job | None:
        """One job; None when the cluster does not know it."""
        with self._explained():
            try:
                return _job(self._client().get_job_info(job_id))
            except RuntimeError as error:
                if "does not exist" in str(error):
                    return None
                raise

    def logs(self, job_id: str) -> str:
        """All that the job has printed so far."""
        with self._explained(job_id):
            return str(self._client().get_job_logs(job_id))

    def follow(self, job_id: str, output: Callable[[str], object]) -> Job:
        """Hand what the job prints to `output` until it ends, and return it.

        Interrupting the caller leaves the job running.
        """
        self.get(job_id)
        with self._explained(job_id):
            asyncio.run(_drain(self._client().tail_job_logs(job_id), output))
        return self._finished(job_id, timeout_s=30)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = float("inf"),
        output: Callable[[str], object] | None = None,
    ) -> Job:
        """Return the job once it has succeeded.

        Raises `JobError` when it failed or was stopped, `ClusterError` after `timeout_s` seconds.
        """
        job = self.follow(job_id, output) if output else self._finished(job_id, timeout_s)
        if job.status != "SUCCEEDED":
            raise JobError(_why(job))
        return job

    def cancel(self, job_id: str) -> bool:
        """Stop a job; False when it had ended already."""
        with self._explained(job_id):
            return bool(self._client().stop_job(job_id))

    def _finished(self, job_id: str, timeout_s: float) -> Job:
        deadline = time.monotonic() + timeout_s
        while not (job := self.get(job_id)).done:
            if time.monotonic() > deadline:
                raise ClusterError(f"job {job_id} is still {job.status} after {timeout_s:.0f} s")
            time.sleep(0.5)
        return job

    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        return JobSubmissionClient(self._cluster.dashboard, headers=self._cluster.headers())

    @contextmanager
    def _explained(self, job_id: str | None = None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else type(error).__name__
            if job_id is not None and "does not exist" in str(error):
                raise ClusterError(
                    f"the cluster knows no job '{job_id}'; `factory jobs list` shows them"
                ) from error
            raise ClusterError(
                f"Ray's job API at {self._cluster.dashboard} refuses: {reason}"
            ) from error


async def _drain(lines: AsyncIterator[str], output: Callable[[str], object]) -> None:
    async for chunk in lines:
        output(chunk)


def _why(job: Job) -> str:
    """One sentence for a job without success; Ray's message ends with what the job printed."""
    lines = [line.strip() for line in job.message.splitlines() if line.strip()] or ["no reason"]
    code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
    return (
        f"job {job.id} ended as {job.status}{code}: {lines[-1]} "
        f"(`factory jobs logs {job.id}` shows all it printed)"
    )


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or details.job_id or "",
        status=str(details.status),
        command=details.entrypoint,
        message=details.message or "",
        started=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
        session=details.submission_id is None,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)

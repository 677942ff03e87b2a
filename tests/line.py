"""The served line of the tests: each state is reached once, when a test first needs it."""

from __future__ import annotations

import json
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory import Factory

ROOT = Path(__file__).parents[1]
STEPS = 24
"""Enough for the model to stop answering in prose, few enough for a test."""


class Line:
    """The served line, brought to each state on first need."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory

    @cached_property
    def url(self) -> str:
        """A gateway that answers, with whatever is champion."""
        return self.factory.deploy().url

    @cached_property
    def tuned(self) -> dict[str, Any]:
        """What `pipelines.finetune` said after a few steps, submitted by Ray's own command."""
        from factory.cluster.local import environment, require

        settings = self.factory.settings
        done = subprocess.run(
            [
                *("ray", "job", "submit", "--address", require(settings).dashboard),
                *("--working-dir", str(ROOT), "--", "python", "-m", "pipelines.finetune"),
                *("--max-steps", str(STEPS)),
            ],
            env=environment(settings, None),
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return _closing(done.stdout)

    @cached_property
    def judged(self) -> dict[str, Any]:
        """What `pipelines.evaluate` said about it."""
        return self.job("evaluate", name="helpdesk", adapter=self.tuned["adapter"], limit=48)

    def job(self, pipeline: str, **arguments: Any) -> dict[str, Any]:
        """Run a pipeline as a Ray job; returns its closing JSON object."""
        job = self.factory.submit(pipeline, working_dir=ROOT, **arguments)
        self.factory.wait(job)
        return _closing(self.factory.jobs.logs(job))


def _closing(output: str) -> dict[str, Any]:
    return dict(json.loads([line for line in output.splitlines() if line[:1] == "{"][-1]))

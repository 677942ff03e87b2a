"""A run in MLflow: its arguments, what it was trained on, and the loss curve.

    tracked = Tracked.start(settings.mlflow_uri, experiment="helpdesk", run=run, params=...)
    tracked.take(points)
    tracked.finish({"train_loss": 0.4})

A resumed run goes on in the MLflow run it began in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from factory.training.run import RunFolder

_SHOWN = ("loss", "recent_loss", "learning_rate", "grad_norm", "epoch", "tokens_per_s", "elapsed")


class Tracked:
    """One MLflow run, as a sink for the points of the curve."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run: RunFolder,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> Tracked:
        """The MLflow run of a run folder, made if it is not there yet."""
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri)
        note = run.root / "mlflow_run_id"
        if note.exists():
            run_id = note.read_text("utf-8").strip()
            try:
                client.update_run(run_id, status="RUNNING")
                return cls(client, run_id)
            except MlflowException:
                note.unlink()
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(
                experiment, artifact_location=(run.root.parent.parent / "mlflow").as_uri()
            )
        )
        run_id = client.create_run(experiment_id, run_name=run.root.name).info.run_id
        client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        run.root.mkdir(parents=True, exist_ok=True)
        note.write_text(run_id, "utf-8")
        return cls(client, run_id)

    def take(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Log points of the curve."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[
                Metric(key, float(point[key]), now, point["step"])
                for point in points
                for key in _SHOWN
            ],
        )

    def close(self) -> None:
        """The curve is complete; `finish` or `fail` says how the run ended."""

    def finish(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log closing figures and mark the run as finished."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self.client.set_terminated(self.run_id, "FINISHED")

    def fail(self, reason: str) -> None:
        """Mark the run as failed, with the reason."""
        self.client.set_tag(self.run_id, "failure", reason)
        self.client.set_terminated(self.run_id, "FAILED")

"""The folder of one run: checkpoints, the loss curve, and the finished adapter.

    run = RunFolder(settings.home / "runs" / "helpdesk-1")
    run.append({"step": 5, "loss": 1.2})
    run.points(after=0)

The curve is one JSON object a line, written by the first worker and read by the driver while the
run goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.training.errors import TrainingError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run and its curve."""

    root: Path

    @classmethod
    def named(cls, runs: Path, name: str) -> RunFolder:
        """The folder of run `name` under `runs`. Raises `TrainingError` for an unsafe name."""
        if not _NAME.fullmatch(name):
            raise TrainingError(
                f"'{name}' cannot name a run: use letters, digits, '.', '_' and '-', "
                "starting with a letter or digit"
            )
        return cls(runs / name)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.root / "checkpoints"

    @property
    def curve(self) -> Path:
        """The loss curve."""
        return self.root / "curve.jsonl"

    @property
    def adapter(self) -> Path:
        """The finished adapter, before it goes into the object store."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """The finished weights of full tuning, before they go into the object store."""
        return self.root / "model"

    def append(self, point: Mapping[str, Any]) -> None:
        """Add one point to the curve."""
        with self.curve.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")

    def points(self, after: int = 0) -> list[dict[str, Any]]:
        """Points of the curve beyond step `after`; a line still being written is left out."""
        if not self.curve.exists():
            return []
        lines = self.curve.read_text("utf-8").split("\n")[:-1]
        return [point for point in map(json.loads, lines) if point["step"] > after]

    def rewind(self, step: int) -> int:
        """Make the folder, and forget the points beyond `step`, which will be trained again.

        Returns how many steps that is, as far as the curve shows.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        points = self.points()
        kept = [point for point in points if point["step"] <= step]
        draft = self.curve.with_suffix(".draft")
        draft.write_text("".join(json.dumps(point) + "\n" for point in kept), "utf-8")
        draft.replace(self.curve)
        return int(points[-1]["step"]) - step if len(kept) < len(points) else 0

    def starts(self) -> list[dict[str, Any]]:
        """Every start of the run: when and where, from which step, and how many were lost."""
        path = self.root / "starts.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]

    def leave(self, at: float) -> None:
        """Note that the run left its place with everything saved, at a time since the epoch."""
        (self.root / "left").write_text(str(at), "utf-8")

    def left(self) -> float | None:
        """When the run last left its place on a notice, told once."""
        path = self.root / "left"
        if not path.exists():
            return None
        at = float(path.read_text("utf-8"))
        path.unlink()
        return at

    def started(self, fact: Mapping[str, Any]) -> None:
        """Note a start."""
        with (self.root / "starts.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fact) + "\n")

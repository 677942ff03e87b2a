from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.gateway.semantic.calibrate import Calibration, calibrate
from factory.gateway.semantic.thresholds import Thresholds, save, scope_of
from factory.ledger.store import open_ledger

SCOPE = scope_of("support", "helpdesk")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def found(different: int) -> Calibration:
    return calibrate(
        [0.0] * different + [0.9] * 10, [False] * different + [True] * 10, max_false_hits=0.01
    )


def test_the_newest_calibration_of_this_embedder_is_in_force(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'factory.db'}")
    thresholds = Thresholds("embedder-1")
    thresholds.refresh(ledger, [SCOPE])
    assert thresholds(SCOPE) is None
    save(ledger, SCOPE, "embedder-1", found(400), NOW)
    assert thresholds(SCOPE) is None
    thresholds.refresh(ledger, [SCOPE])
    assert thresholds(SCOPE) == found(400).threshold
    assert Thresholds("embedder-2").read(ledger, SCOPE) is None
    assert thresholds.read(ledger, scope_of("research", "helpdesk")) is None
    save(ledger, SCOPE, "embedder-1", found(100), NOW)
    thresholds.refresh(ledger, [SCOPE])
    assert thresholds(SCOPE) is None
    ledger.close()


def test_the_command_refuses_wrong_names_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    words = ["cache", "calibrate", "--pairs", "pairs.csv"]
    wrong = run(app, [*words, "--team", "nobody", "--endpoint", "helpdesk"])
    assert wrong.exit_code == 2
    assert "there is no team 'nobody'" in " ".join(wrong.output.split())
    missing = run(app, [*words, "--team", "support", "--endpoint", "helpdesk"])
    assert missing.exit_code == 1
    assert "'pairs.csv' cannot be read" in missing.output
    status = run(app, ["cache", "status", "--json"])
    assert status.exit_code == 0
    assert json.loads(status.stdout) == {"caches": []}

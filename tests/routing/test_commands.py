"""`factory routing fit | calibrate | report` on files and on the ledger's own outcomes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.config import load
from factory.ledger.calibrations import newest
from factory.ledger.outcomes import Outcome, record_outcome
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.samples import Attempt, Sample, keep_many
from factory.ledger.store import open_ledger

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, embedder):
    """A home of its own, and no minute spent on distilling an embedder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACTORY_CONFIG", raising=False)
    monkeypatch.setattr("factory.cli.routing._embedder", lambda *_: embedder)
    return tmp_path


@pytest.fixture
def run():
    def invoke(*words, code=0):
        result = CliRunner().invoke(app, ["routing", *words])
        assert result.exit_code == code, result.output
        return result.output if code else result.stdout

    return invoke


@pytest.fixture
def data(home, world):
    table = world(900)
    frame = pd.DataFrame(table.good.astype(bool), columns=["weak_correct", "strong_correct"])
    frame["prompt"] = table.prompts
    frame.to_parquet(home / "labels.parquet")
    return str(home / "labels.parquet")


def calibration(kind):
    ledger = open_ledger(load(None).database_url)
    try:
        return newest(ledger, kind, "helpdesk")
    finally:
        ledger.close()


def test_fit_report_and_calibrate(run, data, home):
    fitted = json.loads(run("fit", "--endpoint", "helpdesk", "--data", data, "--json"))
    assert fitted["tiers"] == [1, 3]
    assert fitted["n"] + fitted["held_out"] == 900
    report = json.loads(run("report", "--endpoint", "helpdesk", "--json", "--out", "plot.png"))
    assert report["random"]["apgr"] == pytest.approx(0.5)
    assert 0.6 < report["router"]["apgr"] < report["oracle"]["apgr"]
    assert (home / "plot.png").is_file()
    assert "always strong" in run("report", "--endpoint", "helpdesk")
    assert calibration("router") is None
    found = json.loads(run("calibrate", "--endpoint", "helpdesk", "--quality", "0.7", "--json"))
    kept = calibration("router")
    assert kept.detail["threshold"]["value"] == found["value"]
    assert kept.detail["router"] == fitted["router"]
    assert kept.subject == "1=smollm2-135m@*; 3=premium@*"
    assert found["bound"] >= 0.7


def test_what_cannot_be_certified_is_refused_and_not_kept(run, data):
    run("fit", "--endpoint", "helpdesk", "--data", data)
    said = run("calibrate", "--endpoint", "helpdesk", "--quality", "0.99", code=1)
    assert "out of reach" in said or "needs" in said
    assert calibration("router") is None


def test_a_cost_target(run, data):
    run("fit", "--endpoint", "helpdesk", "--data", data)
    words = ("calibrate", "--endpoint", "helpdesk", "--cost-usd-per-1k", "1.5", "--json")
    found = json.loads(run(*words))
    assert found["bound"] <= 1_500_000
    assert found["value"] is not None


def test_from_the_ledgers_own_outcomes(run, world, embedder):
    table = world(500, seed=3)
    vectors = embedder.encode(table.prompts).astype("<f2")
    ledger = open_ledger(load(None).database_url)
    samples = []
    for row, (low, high) in enumerate(table.good.astype(bool)):
        climbed = not low and row % 2 == 0
        attempts = [
            Attempt(
                tier=1,
                model="smollm2-135m",
                accepted=not climbed,
                cost_nusd=1,
                confidence=0.9 if low else 0.4,
            )
        ]
        if climbed:
            attempts.append(Attempt(tier=3, model="premium", accepted=True, cost_nusd=100))
        name = f"r{row}"
        request = RequestRecord(
            request_id=name,
            created_at=NOW,
            team="support",
            endpoint="helpdesk",
            status="ok",
            http_status=200,
            tier=attempts[-1].tier,
            model=attempts[-1].model,
            model_version="v7",
            cost_nusd=1,
            top_tier_nusd=1,
        )
        charge = ChargeRecord(
            charge_id=f"c{row}",
            request_id=name,
            seq=0,
            created_at=NOW,
            team="support",
            endpoint="helpdesk",
            tier=1,
            model="smollm2-135m",
            kind="generation",
            cost_nusd=1,
        )
        ledger.record(request, [charge])
        record_outcome(
            ledger,
            Outcome(
                outcome_id=f"o{row}",
                request_id=name,
                created_at=NOW,
                success=bool(high if climbed else low),
            ),
        )
        samples.append(
            Sample(
                request_id=name,
                created_at=NOW,
                endpoint="helpdesk",
                embedding=np.ascontiguousarray(vectors[row]).tobytes(),
                attempts=attempts,
            )
        )
    with ledger.write() as connection:
        keep_many(connection, samples)
    ledger.close()
    fitted = json.loads(run("fit", "--endpoint", "helpdesk", "--json"))
    assert fitted["n"] > 300
    run("calibrate", "--endpoint", "helpdesk", "--quality", "0.6", "--kind", "confidence")
    kept = calibration("confidence")
    assert kept.subject == "1=smollm2-135m@v7; 3=premium@v7"
    assert 0.4 <= kept.detail["threshold"]["value"] <= 0.9


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["report", "--endpoint", "helpdesk"], 1, "no router is fitted"),
        (["fit", "--endpoint", "helpdesk"], 1, "labelled prompts"),
        (["fit", "--endpoint", "helpdesk", "--encoder"], 2, "needs --data"),
        (["fit", "--endpoint", "helpdesk", "--teacher", "smollm2-135m"], 2, "needs --data"),
        (["fit", "--endpoint", "nobody"], 2, "no endpoint"),
        (["fit", "--endpoint", "helpdesk-batch"], 2, "fewer than two"),
        (["fit", "--endpoint", "helpdesk", "--data", "none.csv"], 1, "no file"),
        (["calibrate", "--endpoint", "helpdesk"], 2, "either --quality"),
        (["calibrate", "--endpoint", "helpdesk", "--quality", "7"], 1, "between 0 and 1"),
    ],
)
def test_what_is_wrong_is_said(run, words, code, says):
    assert says in " ".join(run(*words, code=code).replace("│", " ").split())

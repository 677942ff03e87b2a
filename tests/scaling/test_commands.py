"""`factory simulate` as a user calls it, and the benchmark on a trace of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import autoscaling
from factory.cli import app
from factory.scaling.profile import Profile
from factory.scaling.trace import Trace


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, profile: Profile, traffic: Callable[..., Trace]
) -> tuple[Path, Path]:
    """A trace and a profile on disk."""
    folder = tmp_path_factory.mktemp("simulate")
    trace = traffic(lambda t: 6 - 4 * np.cos(2 * np.pi * t / 300), 600)
    rows = zip(trace.arrivals, trace.prompt, trace.generated, strict=True)
    (folder / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"{when},{prompt},{answer}\n" for when, prompt, answer in rows)
    )
    (folder / "profile.json").write_text(profile.model_dump_json())
    return folder / "trace.csv", folder / "profile.json"


def test_simulate_prints_what_it_would_cost_and_draws_it(files: tuple[Path, Path]) -> None:
    trace, profile = files
    plot = trace.with_suffix(".png")
    asked = ["simulate", "--trace", str(trace), "--profile", str(profile), "--plot", str(plot)]

    result = CliRunner().invoke(app, [*asked, "--usd-per-hour", "2", "--json"])

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for policy in ("factory", "ray_default", "clairvoyant"):
        assert found[policy]["usd"] == pytest.approx(2 * found[policy]["replica_hours"], abs=1e-3)
    assert found["clairvoyant"]["replica_hours"] < found["factory"]["replica_hours"]
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--profile", "nobody"], "has not been measured"),
        (["--scale", "-1"], "scaled by a number above 0"),
        (["--trace", "none.csv"], "cannot read the trace"),
    ],
)
def test_simulate_refuses_in_one_sentence(
    files: tuple[Path, Path], changed: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["simulate", "--trace", str(files[0]), *changed])

    assert result.exit_code == 1
    assert message in result.stderr


def test_profile_refuses_a_model_that_generates_nothing() -> None:
    result = CliRunner().invoke(app, ["profile", "minilm", "--key", "k"])

    assert result.exit_code == 1
    assert "not a model that an engine of ours generates with" in result.stderr


def test_the_benchmark_ends_with_its_keys(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trace, profile = files
    autoscaling.main(["--trace", str(trace), "--profile", str(profile), "--scales", "0.5"])

    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for name in ("factory", "ray_default", "clairvoyant"):
        assert found[name]["replica_hours"] > 0
        assert 0 < found[name]["slo_attainment"] <= 1
    assert found["scales"]["0.5"]["requests"] == found["requests"]

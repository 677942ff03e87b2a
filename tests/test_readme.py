"""The README's code blocks do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from factory import config
from tests.line import ROOT, Line

TEXT = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def test_there_are_blocks_to_run() -> None:
    assert len(_blocks("python")) == 1
    assert len(_blocks("sh")) == 2


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    commands = [line.split("#")[0].split() for line in _blocks("sh")[0].splitlines() if line]

    assert commands == [["make", "demo"], ["make", "up"]]
    for _, target in commands:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.engine
def test_the_shell_block_runs(line_home: Path, tmp_path: Path) -> None:
    env = os.environ | {
        "FACTORY_HOME": str(line_home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    for command in _blocks("sh")[1].splitlines():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_configuration_block_fits_the_default() -> None:
    whole = yaml.safe_load(config.default_text())
    (block,) = _blocks("yaml")
    for section, values in yaml.safe_load(block).items():
        for name, value in values.items():
            given = whole.setdefault(section, {}).get(name)
            merged = {**given, **value} if isinstance(given, dict) else value
            whole[section][name] = merged
    settings = config.parse(yaml.safe_dump(whole), "the README's block", ROOT, {})

    assert settings.teams["support"].budget.at_limit == "cheap_tiers"
    assert len(settings.guard.input) == 4


@pytest.mark.ray
@pytest.mark.engine
def test_the_python_block_runs(line: Line) -> None:
    assert line.url
    done = subprocess.run(
        [sys.executable, "-c", _blocks("python")[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    tier_and_cost = done.stdout.splitlines()[1]
    assert re.fullmatch(r"[01] 0\.\d+", tier_and_cost)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target.split("#")[0]).exists(), target

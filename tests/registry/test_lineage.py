from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from factory.catalog.code import Code, code_state
from factory.registry.lineage import Lineage, library_versions
from tests.registry.conftest import lineage, make_suite


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with the file that tells ours from a stranger's."""
    (tmp_path / "factory").mkdir()
    (tmp_path / "factory" / "sdk.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_code_state_is_commit_and_dirty_flag(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_state({}, checkout) == Code(commit=commit, dirty=False)
    (checkout / "factory" / "sdk.py").write_text("x = 2\n")
    declared = {"FACTORY_CODE_COMMIT": "ignored"}
    assert code_state(declared, checkout) == Code(commit=commit, dirty=True)


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({}, Code(commit="unknown", dirty=None)),
        ({"FACTORY_CODE_COMMIT": ""}, Code(commit="unknown", dirty=None)),
        ({"FACTORY_CODE_COMMIT": "abc"}, Code(commit="abc", dirty=False)),
        ({"FACTORY_CODE_COMMIT": "abc-dirty"}, Code(commit="abc", dirty=True)),
    ],
)
def test_without_git_the_environment_says(tmp_path: Path, env: dict[str, str], code: Code) -> None:
    assert code_state(env, tmp_path) == code


def test_somebody_elses_repository_is_not_ours(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert code_state({}, tmp_path).commit == "unknown"


def test_json_round_trip_and_fingerprint() -> None:
    made = lineage(make_suite())
    assert Lineage.from_json(made.as_json()) == made
    assert made.fingerprint == lineage(make_suite()).fingerprint
    assert made.fingerprint != replace(made, seeds={"train": 8}).fingerprint


def test_library_versions_name_what_is_installed() -> None:
    found = library_versions(("numpy", "no-such-distribution"))
    assert set(found) == {"python", "numpy"}

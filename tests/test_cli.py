from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from factory import Factory
from factory.catalog.objects import ObjectStore
from factory.cli import app
from factory.config import load, masked
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import open_ledger
from factory.sdk import options


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command of these tests has a home and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACTORY_CONFIG", raising=False)
    return tmp_path / "home"


@pytest.fixture
def run() -> Callable[..., str]:
    """Run a command in this process; returns its output, after checking its exit code."""

    def invoke(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        if code == 1:
            assert "Traceback" not in result.stderr
        return result.stdout if code == 0 else result.output

    return invoke


def commands(command: object, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command that does something."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return [words]
    return [found for name, item in inner.items() for found in commands(item, (*words, name))]


LEAVES = commands(get_command(app))


def test_the_command_groups_are_there() -> None:
    assert {" ".join(words) for words in LEAVES} >= {
        *("up", "down", "status", "models pull", "models list"),
        *("jobs submit", "jobs list", "jobs show", "jobs logs", "jobs cancel"),
        *("jobs dead", "jobs waits", "check idle"),
        *("eval run", "eval compare", "registry list", "registry promote"),
        *("registry rollback", "registry log", "costs report", "costs explain"),
        *("keys create", "keys list", "keys revoke"),
        *("budgets check", "budgets alerts"),
        *("audit verify", "audit list", "audit anchor"),
        *("reviews list", "reviews show", "reviews approve", "reviews edit", "reviews reject"),
        *("routing fit", "routing calibrate", "routing report"),
        *("cache calibrate", "cache status"),
        *("config show", "config schema", "config check"),
    }


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_help_has_an_example(run: Callable[..., str], words: tuple[str, ...]) -> None:
    assert "Example: factory" in run(*words, "--help")


def test_config_check_says_what_is_good(run: Callable[..., str], home: Path) -> None:
    said = run("config", "check")
    assert "the packaged default is good: 3 models" in said
    assert "premium is off" in said
    found = json.loads(run("config", "check", "--json"))
    assert (found["ok"], found["home"]) == (True, str(home))


def test_config_check_names_line_and_key(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("home: here\nmodles: {}\n")
    said = run("--config", "bad.yaml", "config", "check", code=1)
    assert "bad.yaml, line 2: modles: unknown key" in said


def test_config_show_masks_secrets(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREMIUM_API_KEY", "sk-very-secret")
    for words in (["config", "show"], ["config", "show", "--json"]):
        said = run(*words)
        assert "smollm2-135m" in said
        assert "sk-very-secret" not in said


def test_config_show_can_be_read_again(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(run("config", "show"))
    assert masked(load(tmp_path / "again.yaml")) == masked(load())


def test_config_schema_is_a_json_schema(run: Callable[..., str]) -> None:
    assert "endpoints" in json.loads(run("config", "schema"))["properties"]


def test_models_list_says_what_is_not_here(run: Callable[..., str]) -> None:
    models = json.loads(run("models", "list", "--json"))["models"]
    assert [(item["name"], item["weights"]) for item in models] == [
        ("smollm2-135m", "not pulled"),
        ("premium", "off: no address or key"),
        ("minilm", "not pulled"),
    ]
    assert "not pulled" in run("models", "list")


def test_models_pull_refuses_in_one_sentence(run: Callable[..., str]) -> None:
    assert run("models", "pull", "gpt", code=1).splitlines()[-1] == (
        "factory: the catalog has no model 'gpt'; it has minilm, premium, smollm2-135m"
    )


def test_a_key_is_made_listed_and_revoked(run: Callable[..., str]) -> None:
    assert "There is no key" in run("keys", "list")
    made = json.loads(run("keys", "create", "--team", "support", "--json"))
    assert made["secret"].startswith("sk-factory-")
    assert made["secret"] not in run("keys", "list") + run("keys", "list", "--json")
    assert made["key_id"] in run("keys", "list", "--team", "support")
    assert run("keys", "create", "--team", "support").startswith("sk-factory-")
    run("keys", "revoke", made["key_id"])
    keys = json.loads(run("keys", "list", "--json"))["keys"]
    assert [key["revoked_at"] is None for key in keys] == [False, True]
    assert "'nobody' is not under teams" in run("keys", "create", "--team", "nobody", code=1)
    assert "there is no key 'x'" in run("keys", "revoke", "x", code=1)


def test_costs_of_nothing(run: Callable[..., str]) -> None:
    assert "0 requests" in run("costs", "report")
    assert "no request 'r1'" in run("costs", "explain", "r1", code=1)


def test_costs_report_and_explain(run: Callable[..., str]) -> None:
    moment = datetime(2026, 11, 23, 12, tzinfo=UTC)
    who = {"created_at": moment, "team": "support", "endpoint": "helpdesk", "tier": 1}
    ledger = open_ledger(load().database_url)
    ledger.record(
        RequestRecord(
            request_id="r1",
            status="ok",
            http_status=200,
            model="smollm2-135m",
            cost_nusd=1_500,
            top_tier_nusd=90_000,
            reasons=("the prompt is short",),
            **who,
        ),
        [
            ChargeRecord(
                charge_id="c1", request_id="r1", seq=0, kind="generation", cost_nusd=1_500, **who
            )
        ],
    )
    ledger.close()
    report = json.loads(run("costs", "report", "--json"))
    assert (report["cost_nusd"], report["saving_nusd"]) == (1_500, 88_500)
    said = run("costs", "report")
    assert "0.001500000" in said
    assert "The same all at premium" in said
    assert json.loads(run("costs", "report", "--since", "2026-11-24", "--json"))["requests"] == 0
    tagged = json.loads(run("costs", "report", "--by", "metadata.project", "--json"))
    assert [line["value"] for line in tagged["lines"]] == [None]
    assert "metadata.KEY" in run("costs", "report", "--by", "project", code=2)
    assert "the prompt is short" in run("costs", "explain", "r1")
    assert json.loads(run("costs", "explain", "r1", "--json"))["charges"][0]["seq"] == 0
    with Factory() as factory:
        assert factory.costs().saving_nusd == 88_500
        assert factory.explain("r1").charges[0].cost_nusd == 1_500


def test_the_registry_without_versions(run: Callable[..., str]) -> None:
    assert "Nothing has been decided about 'helpdesk'" in run("registry", "log", "helpdesk")
    assert json.loads(run("registry", "log", "helpdesk", "--json"))["promotions"] == []


@pytest.mark.parametrize(
    "words", [("list", "helpdesk"), ("rollback", "helpdesk"), ("promote", "helpdesk", "7")]
)
def test_the_registry_refuses_without_a_traceback(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["registry", *words])
    assert result.exit_code == (0 if words[0] == "list" else 1)
    assert re.search(r"no version|helpdesk", result.output)
    assert "Traceback" not in result.output


def test_results_that_are_not_there(run: Callable[..., str]) -> None:
    assert "there are no results 'a'; there are none" in run("eval", "compare", "a", "b", code=1)
    said = run("eval", "run", "--suite", "absent", code=1)
    assert "neither a path nor among the stored suites" in said


def test_nothing_runs(run: Callable[..., str]) -> None:
    assert "Nothing was running" in run("down")
    assert json.loads(run("down", "--json")) == {"stopped": False}
    assert "Nothing runs" in run("status", code=1)
    assert "No job waits or runs" in run("jobs", "list")
    assert "knows no job 'x'" in run("jobs", "show", "x", code=1)
    for words in (["submit", "finetune"], ["logs", "x"], ["cancel", "x"]):
        assert "start one with `factory up`" in run("jobs", *words, code=1)


def test_a_job_is_checked_and_shown_before_it_is_queued(run: Callable[..., str]) -> None:
    words = ("jobs", "submit", "--dry-run", "--json")
    shown = json.loads(run(*words, "--hours", "2", "finetune", "--max-steps", "5"))
    assert shown["pools"] == ["onprem"]
    assert shown["spec"]["args"] == ["--max-steps", "5"]
    assert float(shown["estimate_usd"]) > 0
    rayjob = json.loads(run(*words, "--format", "rayjob", "finetune"))
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "support"
    past = run(*words, "--deadline", "2020-01-01T00:00", "finetune", code=1)
    assert "the deadline 2020-01-01T00:00:00Z is past" in past
    assert "is no name of a Python module" in run(*words, "fine tune", code=1)


def test_wrong_usage_is_exit_code_2(run: Callable[..., str]) -> None:
    run("nonsense", code=2)
    run("keys", "create", code=2)
    run("costs", "report", "--since", "yesterday", code=2)


def cli(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "factory.cli", *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_up_on_a_port_in_use_is_one_sentence_and_starts_nothing(tmp_path: Path, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        document = {"models": {}, "teams": {}, "endpoints": {}, "gateway": {"port": port}}
        (tmp_path / "factory.yaml").write_text(json.dumps(document))
        done = cli("up")
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (home / "run" / "cluster.json").exists()


def test_help_and_check_import_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from factory.cli import app
for words in (["--help"], ["config", "check"], ["status"]):
    CliRunner().invoke(app, words)
heavy = {"torch", "ray", "mlflow", "transformers", "openai"}
print(sorted(heavy & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_sdk_finds_what_the_commands_find(home: Path) -> None:
    with Factory() as factory:
        assert factory.settings.home == home
        assert isinstance(factory.objects, ObjectStore)
        assert "packaged default" in repr(factory)
        secret, key = factory.create_key("support")
        assert secret.startswith(key.prefix)
        assert factory.champion("helpdesk") is None
        assert not factory.status().healthy
        assert not factory.down()


def test_keywords_become_options() -> None:
    assert options({"max_steps": 5, "resume": True, "quiet": False, "tag": ["a", "b"]}) == [
        *("--max-steps", "5", "--resume", "--tag", "a", "--tag", "b")
    ]

"""Records, ports, processes and refusals: everything that needs no Ray."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import pytest
from filelock import FileLock

from factory.cluster import local, ports, processes, serving, token
from factory.cluster.errors import ClusterError
from factory.config import Settings, parse

SLEEP = "import sys; sys.stdin.read()"


def record(settings: Settings, pid: int, started: float, mark: str) -> None:
    run = settings.home / "run"
    run.mkdir(parents=True)
    values = {"id": mark, "pid": pid, "started": started, "address": "127.0.0.1:1"}
    values |= {"dashboard": "http://127.0.0.1:1", "temp_dir": str(run / "ray"), "auth": "token"}
    (run / "cluster.json").write_text(json.dumps(values))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any cluster."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_nothing_recorded_is_nothing_running(settings: Settings) -> None:
    assert local.current(settings) is None
    assert not local.stop(settings)
    assert not serving.down(settings)
    assert serving.status(settings) == serving.Status(cluster=None, url=None, healthy=False)
    with pytest.raises(ClusterError, match="start one with `factory up`"):
        local.require(settings)
    with pytest.raises(ClusterError, match="factory up"):
        serving.serving(settings)


def test_a_recycled_pid_is_not_taken_for_the_head(
    settings: Settings, sleeper: subprocess.Popen[bytes]
) -> None:
    started = processes.started(sleeper.pid)
    assert started is not None
    record(settings, sleeper.pid, started - 3600, uuid.uuid4().hex)
    assert local.current(settings) is None
    assert not local.stop(settings)
    assert sleeper.poll() is None
    assert not (settings.home / "run" / "cluster.json").exists()


def test_survivors_of_a_dead_head_are_ended_and_nobody_else(
    settings: Settings, sleeper: subprocess.Popen[bytes]
) -> None:
    mark = uuid.uuid4().hex
    with (
        subprocess.Popen([sys.executable, "-c", ""]) as head,
        subprocess.Popen(
            [sys.executable, "-c", SLEEP],
            stdin=subprocess.PIPE,
            env={**os.environ, processes.MARK: mark},
        ) as survivor,
    ):
        started = psutil.Process(head.pid).create_time()
        head.wait()
        record(settings, head.pid, started, mark)
        assert local.current(settings) is None
        local.stop(settings)
        assert processes.started(survivor.pid) is None
    assert sleeper.poll() is None


def test_the_head_takes_its_whole_family_with_it(settings: Settings) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], stdin=subprocess.PIPE,
                         start_new_session=True)
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        grandchild = int(head.stdout.readline())
        started = processes.started(head.pid)
        assert started is not None
        record(settings, head.pid, started, uuid.uuid4().hex)
        assert local.current(settings) is not None
        assert local.stop(settings)
    assert processes.started(grandchild) is None


def test_an_unreadable_record_is_one_sentence(settings: Settings) -> None:
    run = settings.home / "run"
    run.mkdir(parents=True)
    (run / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cluster.json' cannot be read"):
        local.current(settings)


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        document = {"models": {}, "teams": {}, "endpoints": {}, "gateway": {"port": port}}
        settings = parse(json.dumps(document), "t.yaml", tmp_path, {})
        with pytest.raises(ClusterError, match=f"port {port} on 127.0.0.1 is in use"):
            serving.up(settings)
    assert local.current(settings) is None


def test_two_starts_at_the_same_moment_are_told_apart(settings: Settings) -> None:
    run = settings.home / "run"
    run.mkdir(parents=True)
    with FileLock(run / "cluster.lock"), pytest.raises(ClusterError, match="right now"):
        local.start(settings)
    with FileLock(run / "serving.lock"), pytest.raises(ClusterError, match="at work"):
        serving.up(settings)


def test_free_ports_are_different_and_bindable() -> None:
    found = ports.free(5, Random(1))
    assert len(set(found)) == 5
    assert all(ports.is_free(port) for port in found)


def test_a_port_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not ports.is_free(port)
        assert not ports.is_free(port, "0.0.0.0")


def test_a_child_finds_interpreter_home_and_configuration(settings: Settings) -> None:
    base = {"PATH": "/bin", "RAY_ADDRESS": "elsewhere:1", "PYTHONPATH": "/mine"}
    env = local.environment(settings, Path("factory.yaml"), base)
    assert env["PATH"].split(":") == [str(Path(sys.executable).parent), "/bin"]
    assert env["FACTORY_HOME"] == str(settings.home)
    assert env["FACTORY_CONFIG"] == str(Path.cwd() / "factory.yaml")
    assert "RAY_ADDRESS" not in env
    assert env["PYTHONPATH"].endswith("/mine")
    assert env["RAY_AUTH_MODE"] == "token"


def test_the_token_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "ray" / "auth_token"
    env = {"RAY_AUTH_TOKEN_PATH": str(path)}
    first = token.ensure(env)
    assert token.ensure(env) == first == path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert token.headers("token", env) == {"Authorization": f"Bearer {first}"}
    assert token.headers("disabled", env) == {}
    assert token.ensure({"RAY_AUTH_TOKEN": "given"}) == "given"

"""Several processes on one database, and a process that dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from factory.ledger.store import open_ledger

ROOT = Path(__file__).parents[2]


def start(url: str, prefix: str, count: int) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("scribe.py")), url, prefix, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_open_a_fresh_database_and_record_at_once(url: str) -> None:
    scribes = [start(url, prefix, 100) for prefix in ("left", "right")]
    try:
        assert [hear(scribe) for scribe in scribes] == ["open", "open"]
        for scribe in scribes:
            say(scribe)
        heard = [set(scribe.communicate(timeout=60)[0].split()) for scribe in scribes]
        assert [scribe.returncode for scribe in scribes] == [0, 0]
    finally:
        for scribe in scribes:
            scribe.kill()
            scribe.wait()
    assert len(heard[0]) == len(heard[1]) == 100
    assert len(heard[0] & heard[1]) == 20
    ledger = open_ledger(url)
    recorded = [request.request_id for request in ledger.requests()]
    assert sorted(recorded) == sorted(heard[0] | heard[1])
    assert ledger.costs().total.cost_nusd == 3 * len(recorded)
    ledger.close()


def test_what_was_acknowledged_survives_a_kill_exactly_once(url: str) -> None:
    scribe = start(url, "mine", 1_000_000)
    try:
        assert hear(scribe) == "open"
        say(scribe)
        acknowledged = [hear(scribe) for _ in range(300)]
        scribe.send_signal(signal.SIGKILL)
        assert scribe.wait(timeout=30) == -signal.SIGKILL
        assert scribe.stdout is not None
        rest = scribe.stdout.read()
    finally:
        scribe.kill()
        scribe.wait()
    acknowledged += rest[: rest.rfind("\n") + 1].split()
    ledger = open_ledger(url)
    recorded = [request.request_id for request in ledger.requests()]
    assert len(recorded) == len(set(recorded))
    assert set(acknowledged) <= set(recorded)
    charged = [charge.request_id for charge in ledger.charges()]
    assert sorted(charged) == sorted(recorded * 2)
    if url.startswith("sqlite"):
        with ledger.read() as connection:
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    ledger.close()

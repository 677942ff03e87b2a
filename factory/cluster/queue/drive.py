"""The queue's controller as a process: `python -m factory.cluster.queue.drive [--forever]`.

Ends by itself when nothing was to do for 30 s; with `--forever` (for systemd) only on SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime

from factory.cluster import local
from factory.cluster.queue import snapshot
from factory.cluster.queue.controller import Controller, Tick
from factory.cluster.queue.runner import RayRunner, Runner
from factory.cluster.queue.store import ACTIVE, Queue
from factory.config import Settings, find, load
from factory.ledger.errors import LedgerUnavailable
from factory.ledger.store import Ledger, open_ledger
from factory.telemetry.webhook import Messenger

IDLE_S = 30.0
KEEP_S = 86_400.0
"""How long code is kept that no job needs."""


def run(
    settings: Settings,
    ledger: Ledger,
    *,
    every_s: float = 0.5,
    idle_exit_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Drive the queue until `stopped`, or until nothing was to do for `idle_exit_s`."""

    def connect() -> Runner | None:
        cluster = local.current(settings)
        if cluster is None or not cluster.ready:
            return None
        return RayRunner(settings, cluster, find(None))

    messenger = Messenger(settings.alerts)
    controller = Controller(settings, ledger, connect, on_alert=messenger.tell)
    busy = time.monotonic()
    trouble: str | None = None
    try:
        while not stopped():
            try:
                tick = controller.tick(datetime.now(UTC))
            except LedgerUnavailable as error:
                tick = Tick(leading=True, active=1, trouble=str(error))
            for name in ("started", "preempted", "ended"):
                for job_id in getattr(tick, name):
                    say(f"{name} {job_id}")
            if tick.trouble != trouble and tick.trouble is not None:
                say(tick.trouble)
            trouble = tick.trouble
            if tick.active and tick.leading:
                busy = time.monotonic()
            if idle_exit_s is not None and time.monotonic() - busy > idle_exit_s:
                return
            time.sleep(every_s)
    finally:
        controller.close(datetime.now(UTC))
        messenger.close()


def main() -> None:
    """Drive the queue of the configured home."""
    parser = argparse.ArgumentParser(description="drive the job queue")
    parser.add_argument("--forever", action="store_true", help="stay when nothing is to do")
    forever = parser.parse_args().forever
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda which, _: asked.append(which))
    settings = load()
    ledger = open_ledger(settings.database_url)

    def say(text: str) -> None:
        print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)

    try:
        run(
            settings,
            ledger,
            idle_exit_s=None if forever else IDLE_S,
            stopped=lambda: bool(asked),
            say=say,
        )
        needed = {job.spec.code for job in Queue(ledger).list((*ACTIVE, "dead", "cancelled"))}
        snapshot.prune(settings.home, needed, time.time() - KEEP_S)
    finally:
        ledger.close()


if __name__ == "__main__":
    main()

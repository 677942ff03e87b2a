"""The queue's controller as a process: `python -m factory.cluster.drive [--forever]`.

Ends by itself when nothing was to do for 30 s; with `--forever` (for systemd) only on SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import time
from datetime import UTC, datetime

from factory.cluster import snapshot
from factory.cluster.controller import run
from factory.cluster.queue import ACTIVE, Queue
from factory.config import load
from factory.ledger.store import open_ledger

IDLE_S = 30.0
KEEP_S = 86_400.0
"""How long code is kept that no job needs."""


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

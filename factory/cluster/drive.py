"""The queue's controller as a process: `python -m factory.cluster.drive [--forever]`.

Ends by itself when nothing was to do for 30 s; with `--forever` (for systemd) only on SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
from datetime import UTC, datetime

from factory.cluster.controller import run
from factory.config import load
from factory.ledger.store import open_ledger

IDLE_S = 30.0


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
    finally:
        ledger.close()


if __name__ == "__main__":
    main()

"""A process that records: `python scribe.py URL PREFIX COUNT`, used by the process tests.

Says `open` when the ledger is open, waits for a line on standard input, then records COUNT
requests of two charges each from eight concurrent tasks and prints each id once it is
acknowledged. Request `shared-N` has the same content whoever records it.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.writer import LedgerWriter

WHEN = datetime(2026, 11, 23, tzinfo=UTC)
WHO = {"team": "support", "endpoint": "helpdesk"}


async def record(writer: LedgerWriter, request_id: str) -> None:
    request = RequestRecord(
        request_id=request_id,
        created_at=WHEN,
        status="ok",
        http_status=200,
        tier=1,
        cost_nusd=3,
        **WHO,
    )
    charges = [
        ChargeRecord(
            charge_id=f"{request_id}-{seq}",
            request_id=request_id,
            seq=seq,
            created_at=WHEN,
            kind="generation",
            tier=seq + 1,
            cost_nusd=seq + 1,
            **WHO,
        )
        for seq in range(2)
    ]
    await writer.record(request, charges)
    print(request_id, flush=True)


async def run(ledger: Ledger, prefix: str, count: int) -> None:
    writer = LedgerWriter(ledger)
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await record(writer, f"{'shared' if number % 5 == 0 else prefix}-{number}")

    await asyncio.gather(*(work() for _ in range(8)))
    await writer.close()


if __name__ == "__main__":
    url, prefix, count = sys.argv[1:]
    opened = open_ledger(url)
    print("open", flush=True)
    sys.stdin.readline()
    asyncio.run(run(opened, prefix, int(count)))

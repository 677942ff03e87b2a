"""A process that records: `python scribe.py URL PREFIX COUNT`, used by the process tests.

Says `open` when the ledger is open, waits for a line on standard input, then records COUNT
requests of two charges each from eight concurrent tasks and prints each id once it is
acknowledged. Request `shared-N` has the same content whoever records it.

With a fourth argument LIMIT it spends: each request reserves `MOST` nano-dollars of a team's day
budget of LIMIT first, may cost less, and its line is `ID:COST`, or `ID:refused`. Request ids are
fresh in each process. With a fifth, FOLDER, it does so through a till with its journal there.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from factory.config import NANO, Budget
from factory.ledger.journal import Journal
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.reservations import Reservation
from factory.ledger.store import Ledger, open_ledger
from factory.ledger.till import Till
from factory.ledger.writer import LedgerWriter

WHEN = datetime(2026, 11, 23, tzinfo=UTC)
WHO = {"team": "support", "endpoint": "helpdesk"}
MOST = 10


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


async def buy(writer: LedgerWriter | Till, name: str, cost: int, limit: int) -> None:
    budgets = {"team:support": Budget(daily_usd=Decimal(limit) / NANO)}
    wanted = Reservation(request_id=name, created_at=WHEN, amount_nusd=MOST, budgets=budgets, **WHO)
    grant = await writer.reserve(wanted)
    paid = cost if grant.granted else 0
    request = RequestRecord(
        request_id=name,
        created_at=WHEN,
        status="ok" if grant.granted else "refused",
        http_status=200 if grant.granted else 429,
        cost_nusd=paid,
        **WHO,
    )
    charge = ChargeRecord(
        charge_id=f"{name}-0",
        request_id=name,
        seq=0,
        created_at=WHEN,
        kind="generation" if grant.granted else "refusal",
        cost_nusd=paid,
        **WHO,
    )
    await writer.record(request, [charge])
    print(f"{name}:{paid if grant.granted else 'refused'}", flush=True)


async def spend(ledger: Ledger, prefix: str, count: int, limit: int, folder: str = "") -> None:
    writer: LedgerWriter | Till = LedgerWriter(ledger, holder=prefix)
    if folder:
        writer = Till(writer, Journal(Path(folder), prefix))  # type: ignore[arg-type]
        await writer.start()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await buy(writer, f"{prefix}-{number}", number % (MOST + 1), limit)

    await asyncio.gather(*(work() for _ in range(8)))
    await writer.close()


if __name__ == "__main__":
    url, prefix, count, *limit = sys.argv[1:]
    opened = open_ledger(url)
    print("open", flush=True)
    sys.stdin.readline()
    if limit:
        asyncio.run(spend(opened, prefix, int(count), int(limit[0]), *limit[1:]))
    else:
        asyncio.run(run(opened, prefix, int(count)))

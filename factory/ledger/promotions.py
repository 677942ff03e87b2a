"""The promotion log: every decision about which version of a model is champion, for ever.

append(ledger, Promotion(created_at=now, name="helpdesk", action="promote", version=3,
                         previous=2, actor="ci", reasons=("passed the gate",)))
history(ledger, "helpdesk")[-1].version   # 3
"""

from __future__ import annotations

from dataclasses import fields, replace

from sqlalchemy import select

from factory.ledger.errors import LedgerError
from factory.ledger.records import Promotion
from factory.ledger.schema import PROMOTIONS
from factory.ledger.store import Ledger


def append(ledger: Ledger, promotion: Promotion) -> Promotion:
    """Write one decision; returns it with its `id`. Raises `LedgerError`."""
    if promotion.id is not None:
        raise LedgerError(f"promotion {promotion.id} is in the log already; append a new decision")
    row = {item.name: getattr(promotion, item.name) for item in fields(promotion)}
    del row["id"]
    with ledger.write() as connection:
        number = connection.scalar(PROMOTIONS.insert().values(row).returning(PROMOTIONS.c.id))
    return replace(promotion, id=number)


def history(ledger: Ledger, name: str) -> list[Promotion]:
    """All decisions about the model `name`, oldest first."""
    query = select(PROMOTIONS).where(PROMOTIONS.c.name == name).order_by(PROMOTIONS.c.id)
    with ledger.read() as connection:
        return [Promotion(**row._asdict()) for row in connection.execute(query)]

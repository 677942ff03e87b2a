"""The rows of leases: cut from budgets, shrunk and returned, in the transaction that charges.

    totals = resize(connection, wishes, holder)    # only under `spend.lock`, after `settle`

`factory.ledger.leases.sliced` decides how much; this module looks up how the budgets stand, and
moves the row together with the running sums of `spend`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam

from factory.ledger import spend
from factory.ledger.leases import Wish, sliced
from factory.ledger.reservations import held_rows, opened, standings_of
from factory.ledger.schema import RESERVATIONS
from factory.ledger.spend import Amounts, Place

_SET = (
    RESERVATIONS.update()
    .where(RESERVATIONS.c.request_id == bindparam("of"))
    .values(amount_nusd=bindparam("total"), holder=bindparam("by"))
)
_DROP = RESERVATIONS.delete().where(RESERVATIONS.c.request_id == bindparam("of"))


def resize(connection: Connection, wishes: Sequence[Wish], holder: str) -> list[int]:
    """Make each row hold what `sliced` allows; returns what they hold, in order.

    In order: a later one sees the earlier ones held.
    """
    rows = held_rows(connection, {wish.name for wish in wishes})
    amounts = opened(connection, [wish.of for wish in wishes])
    totals: list[int] = []
    changes: dict[Place, Amounts] = {}
    for wish in wishes:
        row = rows.get(wish.name)
        held = row.amount_nusd if row is not None else 0
        total = sliced(wish, standings_of(wish.of, amounts), held)
        totals.append(total)
        if total != held:
            _write(connection, wish, total, holder, new=row is None)
            for place in spend.places(wish.of.scopes, wish.of.created_at):
                if place in amounts:
                    amounts[place] = amounts[place].plus(0, total - held)
                    changes[place] = changes.get(place, Amounts()).plus(0, total - held)
    spend.add(connection, changes)
    return totals


def _write(connection: Connection, wish: Wish, total: int, holder: str, *, new: bool) -> None:
    if new:
        row = {
            "request_id": wish.name,
            "holder": holder,
            "created_at": wish.of.created_at,
            "team": wish.of.team,
            "endpoint": wish.of.endpoint,
            "key_id": wish.of.key_id,
            "amount_nusd": total,
            "scopes": list(wish.of.budgets),
        }
        connection.execute(RESERVATIONS.insert(), row)
    elif total:
        connection.execute(_SET, {"of": wish.name, "total": total, "by": holder})
    else:
        connection.execute(_DROP, {"of": wish.name})

"""What requests cost by what their clients call them: a key of the API's `metadata`.

for line in by_tag(ledger, "project", since, until): print(line.as_dict())
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select

from factory.ledger.errors import LedgerError
from factory.ledger.money import per_thousand, usd
from factory.ledger.schema import REQUESTS, within
from factory.ledger.store import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLine:
    """The requests with one value of a tag."""

    value: str | None
    """None collects the requests without it."""
    requests: int
    answered: int
    prompt_tokens: int
    completion_tokens: int
    cost_nusd: int
    top_tier_nusd: int
    """The answered ones at the top tier's list price."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; money as exact US dollars in text."""
        return {
            "value": self.value,
            "requests": self.requests,
            "answered": self.answered,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": usd(self.cost_nusd),
            "cost_per_1k_usd": usd(per_thousand(self.cost_nusd, self.requests) or 0),
            "top_tier_usd": usd(self.top_tier_nusd),
        }


def by_tag(
    ledger: Ledger, key: str, since: datetime | None = None, until: datetime | None = None
) -> list[TagLine]:
    """One line a value of the tag `key`, the dearest first.

    Raises `LedgerError` for a key that no request can have.
    """
    if not key or '"' in key or len(key) > 64:
        raise LedgerError("a key of metadata has 1 to 64 characters, none of them a quotation mark")
    value = REQUESTS.c.tags[key].as_string()
    answered = REQUESTS.c.status == "ok"
    query = (
        select(
            value,
            func.count(),
            func.sum(case((answered, 1), else_=0)),
            func.sum(REQUESTS.c.prompt_tokens),
            func.sum(REQUESTS.c.completion_tokens),
            func.sum(REQUESTS.c.cost_nusd),
            func.sum(case((answered, REQUESTS.c.top_tier_nusd), else_=0)),
        )
        .where(*within(since, until))
        .group_by(value)
    )
    with ledger.read() as connection:
        lines = [
            TagLine(
                value=row[0],
                requests=int(row[1]),
                answered=int(row[2]),
                prompt_tokens=int(row[3]),
                completion_tokens=int(row[4]),
                cost_nusd=int(row[5]),
                top_tier_nusd=int(row[6]),
            )
            for row in connection.execute(query)
        ]
    return sorted(lines, key=lambda line: (-line.cost_nusd, line.value or ""))

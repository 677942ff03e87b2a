"""Amounts of money as text: integer nano-dollars in, exact decimal US dollars out.

usd(1_500)   # "0.000001500"
"""

from __future__ import annotations

from factory.config import NANO


def usd(nusd: int) -> str:
    """Exact US dollars with nine decimals for `nusd` nano-dollars."""
    whole, rest = divmod(abs(nusd), NANO)
    return f"{'-' if nusd < 0 else ''}{whole}.{rest:09d}"


def per_thousand(nusd: int, count: int) -> int | None:
    """Nano-dollars for 1,000 of `count` things that cost `nusd` together, to the nearest one.

    None when there are none of them.
    """
    if count == 0:
        return None
    return (2 * nusd * 1000 + count) // (2 * count)

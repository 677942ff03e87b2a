"""Whether an answer did its job, as its client reports it.

outcomes.report(key, b'{"request_id": "chatcmpl-...", "success": true, "human_minutes": 2}')
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field

from factory.gateway.clock import Clock
from factory.gateway.errors import ApiError
from factory.gateway.fields import Parser, Strict
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.keys import ApiKey
from factory.ledger.outcomes import MAX_MINUTES, Outcome, record_outcome
from factory.ledger.store import Entry, Ledger


def new_id() -> str:
    """A fresh outcome id."""
    return f"outcome-{uuid.uuid4().hex}"


class OutcomeBody(Strict):
    """What a client reports."""

    request_id: str = Field(min_length=1, max_length=200)
    success: bool
    human_minutes: float = Field(default=0.0, ge=0, le=MAX_MINUTES)
    """Time people spent on it."""
    comment: str = Field(default="", max_length=4_000)
    outcome_id: str | None = Field(default=None, min_length=1, max_length=200)
    """Chosen by the reporter, so that reporting again is harmless."""


_OUTCOMES = Parser(OutcomeBody)


Find = Callable[[str], Awaitable[Entry | None]]


class Outcomes:
    """The outcomes of one ledger."""

    def __init__(
        self, ledger: Ledger, clock: Clock, find: Find, ids: Callable[[], str] = new_id
    ) -> None:
        """`find` gives a settled request, also one that is being written."""
        self._ledger = ledger
        self._find = find
        self._clock = clock
        self._ids = ids

    async def report(self, key: ApiKey, raw: bytes) -> dict[str, Any]:
        """Keep an outcome of a request of the key's own team. Raises `ApiError` 400, 404, 409."""
        said = _OUTCOMES.parse(raw)
        try:
            outcome = Outcome(
                outcome_id=said.outcome_id or self._ids(),
                request_id=said.request_id,
                created_at=self._clock.now(),
                success=said.success,
                human_minutes=said.human_minutes,
                reporter=key.key_id,
                comment=said.comment,
            )
        except LedgerError as error:
            raise ApiError(400, "invalid_value", str(error)) from error
        found = await self._find(said.request_id)
        if found is None or found[0].team != key.team:
            raise ApiError(
                404, "request_not_found", f"your team has no request '{said.request_id[:80]}'"
            )
        try:
            await asyncio.to_thread(record_outcome, self._ledger, outcome, key.team)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            raise ApiError(409, "outcome_conflict", str(error)) from error
        return {"object": "outcome"} | outcome.as_dict()

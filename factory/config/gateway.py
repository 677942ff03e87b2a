"""`gateway` and `alerts`: where the gateway listens, how much it takes at once, whom it tells."""

from __future__ import annotations

from pydantic import Field

from factory.config.section import Section


class Gateway(Section):
    """Where the HTTP gateway listens."""

    host: str = "127.0.0.1"
    """Interface to bind; loopback unless told otherwise."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    replicas: int = Field(default=1, ge=1)
    """Gateway processes. Each enforces its share of the rates and of the parallel requests;
    budgets are exact over all of them. More than one needs a PostgreSQL `database` to be fast."""
    journal: bool = True
    """Settle answers in a journal on disk, and in the database a moment later; grant from leases of
    the budgets. Off, every answer waits for the database twice."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """A larger request body is refused with 413."""
    max_parallel_requests: int = Field(default=128, ge=1)
    """Requests that wait for models at once, per gateway process; the rest queue by priority."""
    beside_production: int = Field(default=1, ge=0)
    """Requests of `internal` and `batch` endpoints that run on an engine, per gateway process,
    while production uses it; the rest wait until it has not for 10 s, or are refused with 429."""
    max_queue_s: float = Field(default=10.0, ge=0)
    """Seconds a request waits for its turn before it is refused with 429."""


class Alerts(Section):
    """Whom to tell."""

    webhook: str = ""
    """URL that gets each alert as a JSON POST; empty writes alerts to the log and ledger only."""

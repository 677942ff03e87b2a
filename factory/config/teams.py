"""`teams`: who is charged, how much they may spend, and how fast."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, field_validator

from factory.config.jobs import Quota
from factory.config.section import NANO, Section

Usd = Annotated[Decimal, Field(ge=0, le=Decimal("9e9"), allow_inf_nan=False)]

Window = Literal["hour", "day", "week", "month"]
WINDOWS: tuple[Window, ...] = ("hour", "day", "week", "month")
"""Windows of a budget, in UTC; a week begins on Monday."""


class Budget(Section):
    """Money that may be spent per calendar window (UTC); several windows hold at once."""

    hourly_usd: Usd | None = None
    """US dollars an hour; null sets no bound."""
    daily_usd: Usd | None = None
    """US dollars a day."""
    weekly_usd: Usd | None = None
    """US dollars a week."""
    monthly_usd: Usd | None = None
    """US dollars a month."""
    alert_at: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.8)
    """Fractions of a limit at which an alert is raised, once a window."""
    at_limit: Literal["refuse", "cheap_tiers", "review"] = "refuse"
    """When the next attempt does not fit: refuse with 429, try only cheaper tiers that do fit, or
    hold the request until a person approves it."""

    @field_validator("alert_at")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))

    @property
    def limits_nusd(self) -> dict[Window, int]:
        """Limit in nano-dollars by window; only the windows that are bounded."""
        usd: dict[Window, Decimal | None] = {
            "hour": self.hourly_usd,
            "day": self.daily_usd,
            "week": self.weekly_usd,
            "month": self.monthly_usd,
        }
        return {window: int(limit * NANO) for window, limit in usd.items() if limit is not None}


class Limits(Section):
    """Bounds on single requests and on their rate; null sets no bound."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests that may begin within a minute."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and generated tokens within a minute."""
    max_parallel_requests: int | None = Field(default=None, ge=1)
    """Requests that may be in progress at once."""
    max_input_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; also what a request without its own limit gets."""
    max_request_usd: Usd | None = None
    """Most that one request may cost, retries and climbing included."""


class Team(Section):
    """Who is charged."""

    description: str = ""
    """For people reading the bill."""
    budget: Budget = Budget()
    """Money the team may spend."""
    limits: Limits = Limits()
    """Bounds over all of the team's keys together."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """Its share of the gateway's turns beside other teams that wait as well."""
    priority: int = Field(default=50, ge=0, le=100)
    """When the gateway is full, requests of a higher priority go first."""
    quota: Quota = Quota()
    """CPUs and GPUs that the team's jobs may hold at once."""

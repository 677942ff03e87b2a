"""The database under the ledger: opened by URL, brought to the current schema, its failures told.

    engine = connect("sqlite:////srv/factory/factory.db")
    migrate(engine)

SQLite runs in WAL mode with `synchronous=NORMAL`: a commit survives the death of the process,
while the newest commits may be lost (never half kept) when the whole machine loses power.
PostgreSQL is spoken to through psycopg 3.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.schema import HEAD, VERSION_TABLE

BUSY_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 10
_BEGIN = "ledger_begin"
_MIGRATION_LOCK = 0x6C6564676572  # "ledger" in ASCII: a key for PostgreSQL's advisory locks
_EXAMPLES = "use sqlite:///path/to/factory.db or postgresql://user:password@host/name"


def connect(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet. Raises `LedgerError` for a URL of no use."""
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return create_engine(
        parsed,
        pool_pre_ping=True,
        connect_args={"connect_timeout": parsed.query.get("connect_timeout", CONNECT_TIMEOUT_S)},
    )


def writing(engine: Engine) -> Engine:
    """The same engine for transactions that write: SQLite takes its write lock at once."""
    return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})


def reading(engine: Engine) -> Engine:
    """The same engine for transactions that only read: all their queries see one moment."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def migrate(engine: Engine) -> None:
    """Bring the database to `schema.HEAD`, in one transaction, one process at a time.

    Raises `LedgerError` when it was written by newer code, `LedgerUnavailable` when it cannot
    be reached.
    """
    with translated(engine):
        if engine.dialect.name == "sqlite":
            with _sqlite_alone(engine), writing(engine).begin() as connection:
                _upgrade(connection)
            return
        with engine.begin() as connection:
            if _version(connection) != HEAD:
                lock = text("SELECT pg_advisory_xact_lock(:key)")
                connection.execute(lock, {"key": _MIGRATION_LOCK})
                _upgrade(connection)


class Changes:
    """Tells cheaply whether a database may have changed: microseconds for SQLite, where a query in
    a thread takes half a millisecond of a core. PostgreSQL always may have."""

    def __init__(self, engine: Engine) -> None:
        self._path = engine.url.database if engine.dialect.name == "sqlite" else None
        self._connection: sqlite3.Connection | None = None
        self._seen: int | None = None

    def any(self) -> bool:
        """Whether anybody may have committed anything since the last call. Never waits."""
        if self._path is None:
            return True
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._path, timeout=0)
            # Differs once any other connection, of this process or another, has committed.
            (seen,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return True
        seen, self._seen = self._seen, seen
        return seen != self._seen

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into `LedgerError`, or `LedgerUnavailable` when it may pass."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise LedgerUnavailable(
            f"the ledger's database {_shown(engine)} does not answer: {_cause(error)}; "
            "check that it is running, writable and not full, and that `database` in "
            "factory.yaml is right"
        ) from error
    except DBAPIError as error:
        if engine.dialect.name == "sqlite" and "not a database" in str(error.orig):
            raise LedgerError(
                f"{_shown(engine)} is not a SQLite database; set `database` in factory.yaml to "
                "another file, or move this one away"
            ) from error
        raise LedgerError(
            f"the ledger's database {_shown(engine)} refused: {_cause(error)}"
        ) from error
    except SQLAlchemyError as error:
        raise LedgerError(f"the ledger cannot do that: {_cause(error)}") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise LedgerError(f"`database` is not a database URL; {_EXAMPLES}") from error
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise LedgerError(f"the ledger cannot use '{parsed.drivername}' databases; {_EXAMPLES}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise LedgerError(f"the ledger must outlive the process, so it needs a file; {_EXAMPLES}")
    return parsed


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by sqlite3
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if statement := connection.get_execution_options().get(_BEGIN, "BEGIN"):
            connection.exec_driver_sql(statement)

    return engine


@contextmanager
def _sqlite_alone(engine: Engine) -> Iterator[None]:
    """One process at a time, in WAL mode: SQLite does not wait politely while it switches."""
    path = Path(str(engine.url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_MS / 1000):
            outside_a_transaction = engine.execution_options(**{_BEGIN: None})
            with outside_a_transaction.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            yield
    except Timeout as error:
        raise LedgerUnavailable(
            f"another process has been opening {path} for {BUSY_TIMEOUT_MS // 1000} seconds; "
            f"end it and try again"
        ) from error
    except OSError as error:
        raise LedgerUnavailable(
            f"cannot write the ledger's database {path}: {error.strerror or error}; make the "
            "folder writable, or set `database` or `home` in factory.yaml to another place"
        ) from error


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return version


def _upgrade(connection: Connection) -> None:
    version = _version(connection)
    if version == HEAD:
        return
    # Imported here because a ledger that is up to date, the usual case, opens without Alembic.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise LedgerError(
            f"the ledger {_shown(connection.engine)} has schema {version}, made by a newer "
            f"version of budget-ai-factory than this one (schema {HEAD}); upgrade the package, "
            "or set `database` in factory.yaml to another database"
        )
    command.upgrade(config, HEAD)


def _shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def _cause(error: SQLAlchemyError) -> str:
    original = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(original).split())

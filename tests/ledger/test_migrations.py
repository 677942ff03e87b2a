"""A database is made, recognized, or refused with a sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import factory.ledger.migrations
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.schema import HEAD, VERSION_TABLE, Base
from factory.ledger.store import Ledger, open_ledger

MIGRATIONS = Path(factory.ledger.migrations.__path__[0])
PACKAGE = MIGRATIONS.parents[1]


def test_the_code_is_written_for_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


def test_migrations_make_exactly_the_tables_of_the_schema(ledger: Ledger) -> None:
    with ledger.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_opening_again_keeps_what_is_there(url: str) -> None:
    for _ in range(2):
        ledger = open_ledger(url)
        with ledger.read() as connection:
            versions = connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
        ledger.close()
        assert versions == [HEAD]


def test_a_ledger_from_the_future_is_refused(url: str) -> None:
    ledger = open_ledger(url)
    with ledger.write() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    ledger.close()
    with pytest.raises(LedgerError, match=r"schema 9999, made by a newer version .* upgrade"):
        open_ledger(url)


def test_sqlite_is_left_in_wal_mode(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url)
    with ledger.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("postgresql://user:secret@host:port/name", "not a database URL"),
        ("mysql://host/name", "cannot use 'mysql'"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_url_of_no_use_is_refused(url: str, message: str) -> None:
    with pytest.raises(LedgerError, match=message) as caught:
        open_ledger(url)
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer") as caught:
        open_ledger("postgresql://someone:secret@127.0.0.1:1/factory")
    assert "someone" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "factory.db"
    path.write_text("precious notes " * 500)
    with pytest.raises(LedgerError, match="not a SQLite database"):
        open_ledger(f"sqlite:///{path}")
    assert path.read_text() == "precious notes " * 500


def test_a_place_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "factory.db"):
        with pytest.raises(LedgerUnavailable, match="writable"):
            open_ledger(f"sqlite:///{place}")


def test_migrations_run_from_a_folder_with_odd_characters(tmp_path: Path) -> None:
    home = tmp_path / "100% of it, here"
    for name in ("ledger", "config"):
        shutil.copytree(PACKAGE / name, home / "factory" / name)
    for name in ("__init__.py", "factory.yaml"):
        shutil.copy(PACKAGE / name, home / "factory" / name)
    script = (
        "import factory, sys; from factory.ledger.store import open_ledger; "
        "open_ledger(sys.argv[1]).close(); print(factory.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{home}/factory.db"],
        env=os.environ | {"PYTHONPATH": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(home / "factory" / "__init__.py")

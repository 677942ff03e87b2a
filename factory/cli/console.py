"""What every command shares: state, errors as sentences, progress, tables and JSON.

Results go to standard output; progress and errors go to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from factory.config import Settings
    from factory.ledger.store import Ledger

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


class Commands(TyperGroup):
    """A group whose commands end with one sentence and exit code 1 on an error of ours.

    Every exception class that the factory defines carries a sentence meant for the user.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not type(error).__module__.startswith("factory."):
                raise
            typer.echo(f"factory: {error}", err=True)
            raise typer.Exit(1) from error


@dataclass
class State:
    """The global options, and what is read by them at most once."""

    config: Path | None = None

    @cached_property
    def settings(self) -> Settings:
        """The configuration. Raises `ConfigError`."""
        from factory.config import load

        return load(self.config)

    @property
    def config_file(self) -> Path | None:
        """The file behind `settings`; None for the packaged default."""
        from factory.config import find

        return find(self.config)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, closed at the end."""
        from factory.ledger.store import open_ledger

        ledger = open_ledger(self.settings.database_url)
        try:
            yield ledger
        finally:
            ledger.close()


def state(context: typer.Context) -> State:
    """The state of this invocation."""
    found = context.find_object(State)
    assert found is not None, "the main callback sets the state"
    return found


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that says what is being done: a spinner on a terminal, else a line each."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        yield lambda text: typer.echo(text, err=True)
        return
    with console.status("…") as status:
        yield lambda text: status.update(escape(text))


def emit(value: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table on standard output, or the sentence `empty` when there is no row."""
    if not rows:
        typer.echo(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(*columns, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for row in rows:
        grid.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(grid)


def size(count: int) -> str:
    """Bytes for people, in powers of 1,000."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"

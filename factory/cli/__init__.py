"""The command line: `factory …`, thin over the same functions the SDK uses.

Each command group is a module of this folder. Heavy libraries are imported inside the commands,
so that `factory --help` and `factory config check` answer at once. Every error of ours is one
sentence on standard error and exit code 1; wrong usage is exit code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory import __version__
from factory.cli import (
    audit,
    budgets,
    cache,
    check,
    config,
    costs,
    evaluation,
    jobs,
    keys,
    models,
    place,
    registry,
    reviews,
    routing,
    serving,
    simulate,
    stores,
    tco,
)
from factory.cli.console import Commands, State

app = typer.Typer(
    name="factory",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tune, judge, promote and serve open models, and know what every answer cost.",
    epilog="Example: factory up, then factory keys create --team support",
)
app.command("up")(serving.up)
app.command("down")(serving.down)
app.command("status")(serving.status)
app.command("place")(place.place)
app.command("tco")(tco.tco)
app.command("simulate")(simulate.simulate)
app.command("profile")(simulate.profile)
for group in (
    models,
    jobs,
    evaluation,
    registry,
    costs,
    budgets,
    audit,
    reviews,
    routing,
    keys,
    config,
    cache,
    stores,
    check,
):
    app.add_typer(group.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _globals(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration; else FACTORY_CONFIG, ./factory.yaml, or the packaged default.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = State(config)


def main() -> None:
    """Entry point of the `factory` command."""
    app()

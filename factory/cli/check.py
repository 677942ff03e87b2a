"""`factory check …`: what the platform checks on itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from factory.cli.console import Json, emit, state

app = typer.Typer(name="check", no_args_is_help=True, help="Checks the platform runs on itself.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def idle(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, do nothing.")
    ] = False,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Go on looking, this often.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Announce the stop of a cluster that nobody uses, or whose end date has come, and stop it.

    Set `idle.cluster_after_s` or `idle.ends_at` in factory.yaml; run it from cron or with --every.

    Example: factory check idle --dry-run
    """
    from factory.cluster.errors import ClusterError
    from factory.cluster.idle import check, stops

    this = state(context)
    with this.ledger() as ledger:
        while True:
            try:
                found = check(this.settings, ledger, datetime.now(UTC), act=not dry_run)
                said = f"{found.act}: {found.reason}"
                if found.stops_at is not None:
                    said += f"; stops at {found.stops_at:%Y-%m-%dT%H:%M:%SZ} unless it is used"
            except ClusterError as error:
                if every is None:
                    raise
                said = str(error)
            if json and every is None:
                emit(
                    {
                        "act": found.act,
                        "reason": found.reason,
                        "stops_at": found.stops_at and found.stops_at.isoformat(),
                        "dry_run": dry_run,
                        "stopped_before": stops(ledger),
                    }
                )
            else:
                typer.echo(said)
            if every is None:
                return
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None

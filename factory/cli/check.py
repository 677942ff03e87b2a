"""`factory check …`: what the platform checks on itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.console import Json, emit, state, table
from factory.ledger.money import usd

if TYPE_CHECKING:
    from factory.cluster.idle.leftovers import Found

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
    """Announce the stop of what nobody uses, and stop it: sessions, leftovers, the whole cluster.

    Lists endpoints, their engines (which fall asleep by themselves), sessions (notebooks) and what
    ended jobs left behind, each with its reason. Set
    `idle.session_after_s`, `leftover_after_s`, `cluster_after_s` or `ends_at` in factory.yaml; run
    it from cron or with --every.

    Example: factory check idle --dry-run
    """
    from factory.cluster.errors import ClusterError
    from factory.cluster.idle import leftovers
    from factory.cluster.idle.shutdown import check, stops

    this = state(context)
    with this.ledger() as ledger:
        while True:
            things: list[leftovers.Found] = []
            try:
                now = datetime.now(UTC)
                things = leftovers.check(this.settings, ledger, now, act=not dry_run)
                unused = leftovers.unused(things)
                found = check(this.settings, ledger, now, act=not dry_run, unused=unused)
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
                        "things": [each.as_dict() for each in things],
                        "stopped_before": stops(ledger),
                    }
                )
            else:
                _show(things)
                typer.echo(f"cluster: {said}")
            if every is None:
                return
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None


def _show(things: list[Found]) -> None:
    if not things:
        return
    table(
        ("", "id", "what", "USD an hour", "", "why"),
        [
            (
                each.thing.kind,
                each.thing.id[:16],
                each.thing.name if each.thing.kind not in ("endpoint", "engine") else "",
                usd(each.thing.nusd_per_hour) if each.thing.nusd_per_hour else "",
                each.decision.act,
                each.failed or _why(each),
            )
            for each in things
        ],
        "",
    )


def _why(found: Found) -> str:
    at = found.decision.stops_at
    if at is None:
        return found.decision.reason
    if found.thing.kind == "engine":
        return f"{found.decision.reason}; sleeps at {at:%Y-%m-%dT%H:%M:%SZ} unless it is asked"
    return f"{found.decision.reason}; stops at {at:%Y-%m-%dT%H:%M:%SZ} unless it works"

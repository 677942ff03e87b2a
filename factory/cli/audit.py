"""`factory audit …`: every decision, and whether the log still is what the factory wrote."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from factory.cli.console import Json, emit, progress, state, table
from factory.ledger.text import printable

app = typer.Typer(name="audit", no_args_is_help=True, help="The log of every decision.")


@app.command()
def verify(
    context: typer.Context,
    anchor: Annotated[
        str | None, typer.Option(metavar="SEQ:HASH", help="As `audit anchor` printed it once.")
    ] = None,
    json: Json = False,
) -> None:
    """Check the chain and every request's digest; exit code 1 when something was changed.

    Example: factory audit verify --anchor "$(cat anchor.txt)"
    """
    from factory.ledger.audit import Anchor
    from factory.ledger.verification import verify as check

    kept = None if anchor is None else Anchor.parse(anchor)
    with state(context).ledger() as ledger, progress() as say:
        say("walking the chain and digesting every request again")
        found = check(ledger, kept)
    if json:
        emit(asdict(found) | {"head": str(found.head)})
    elif found.ok:
        since = "" if kept is None else f", and event {kept.seq} is the anchored one"
        typer.echo(f"The log is whole: {found.checked} events{since}.")
        typer.echo(f"Keep this elsewhere as an anchor: {found.head}")
    else:
        where = "" if found.first_broken_seq is None else f" from event {found.first_broken_seq} on"
        typer.echo(f"The log does not hold{where}; {found.checked} events were checked:")
        for reason in found.reasons:
            typer.echo(f"- {printable(reason)}")
    if found.older and not json:
        typer.echo(f"{found.older} requests are older than the log, which cannot vouch for them.")
    if not found.ok:
        raise typer.Exit(1)


@app.command("list")
def list_(
    context: typer.Context,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this key or person.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only `review.approve`, or all of `review`.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only about the thing of this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """Show the newest events, oldest first.

    Example: factory audit list --action review --since 2026-11-01
    """
    from factory.ledger.audit import events

    with state(context).ledger() as ledger:
        found = events(
            ledger,
            since=since and since.replace(tzinfo=UTC),
            actor=actor,
            action=action,
            subject=subject,
            limit=limit,
        )
    if json:
        emit({"events": [asdict(event) for event in found]})
        return
    table(
        ("event", "time", "actor", "action", "subject", "detail"),
        [
            (
                event.seq,
                f"{event.created_at:%Y-%m-%d %H:%M:%S}",
                printable(event.actor),
                event.action,
                printable(event.subject),
                ", ".join(
                    printable(f"{name}={value}")
                    for name, value in event.detail.items()
                    if name not in {"digest", "version"}
                ),
            )
            for event in found
        ],
        "There is no such event.",
    )


@app.command()
def anchor(context: typer.Context, json: Json = False) -> None:
    """Print the newest event's place and hash, to keep where the database's owner cannot write.

    Example: factory audit anchor > anchor.txt
    """
    from factory.ledger.audit import head

    with state(context).ledger() as ledger:
        newest = head(ledger)
    if json:
        emit(asdict(newest))
    else:
        typer.echo(str(newest))

"""`factory keys …`: who may call the gateway, and which team pays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from factory.cli.console import Json, emit, state, table

app = typer.Typer(name="keys", no_args_is_help=True, help="API keys of the gateway.")


@app.command()
def create(
    context: typer.Context,
    team: Annotated[str, typer.Option(help="The team that pays.")],
    endpoint: Annotated[
        list[str] | None, typer.Option(help="An endpoint it may call; default: all of the team.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a key. The secret is printed once and cannot be shown again.

    Example: factory keys create --team support
    """
    from factory.ledger.keys import create_key

    this = state(context)
    with this.ledger() as ledger:
        secret, key = create_key(ledger, this.settings, team, endpoint or ["*"])
    if json:
        emit({"secret": secret, **asdict(key)})
    else:
        typer.echo(secret)
        typer.echo(f"{key.key_id} of team {team}; keep the secret, it is not shown again", err=True)


@app.command("list")
def list_(
    context: typer.Context,
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    json: Json = False,
) -> None:
    """Show all keys, without their secrets.

    Example: factory keys list --team support
    """
    from factory.ledger.keys import list_keys

    with state(context).ledger() as ledger:
        found = list_keys(ledger, team)
    if json:
        emit({"keys": [asdict(key) for key in found]})
        return
    table(
        ("key", "starts with", "team", "endpoints", "created", "revoked"),
        [
            (
                key.key_id,
                key.prefix,
                key.team,
                ", ".join(key.endpoints),
                f"{key.created_at:%Y-%m-%d %H:%M}",
                key.revoked_at and f"{key.revoked_at:%Y-%m-%d %H:%M}",
            )
            for key in found
        ],
        "There is no key. Make one with `factory keys create --team TEAM`.",
    )


@app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The id, as `keys list` shows it.")],
    json: Json = False,
) -> None:
    """Make a key useless at once, for ever.

    Example: factory keys revoke key-0123456789ab
    """
    from factory.ledger.keys import revoke as end

    with state(context).ledger() as ledger:
        key = end(ledger, key_id)
    if json:
        emit(asdict(key))
    else:
        typer.echo(f"{key.key_id} of team {key.team} is revoked.")

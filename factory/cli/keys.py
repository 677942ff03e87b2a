"""`factory keys …`: who may call the gateway, which team pays, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factory.cli.console import Json, emit, state, table

if TYPE_CHECKING:
    from factory.config import Budget, Limits

_Section = TypeVar("_Section", "Budget", "Limits")

app = typer.Typer(name="keys", no_args_is_help=True, help="API keys of the gateway.")


@app.command()
def create(
    context: typer.Context,
    team: Annotated[str, typer.Option(help="The team that pays.")],
    endpoint: Annotated[
        list[str] | None, typer.Option(help="An endpoint it may call; default: all of the team.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="inference (default), reviewer or metrics; may be given several times."),
    ] = None,
    hourly_usd: Annotated[str | None, typer.Option(help="Budget an hour, US dollars.")] = None,
    daily_usd: Annotated[str | None, typer.Option(help="Budget a day (UTC).")] = None,
    weekly_usd: Annotated[str | None, typer.Option(help="Budget a week from Monday.")] = None,
    monthly_usd: Annotated[str | None, typer.Option(help="Budget a calendar month.")] = None,
    alert_at: Annotated[
        list[float] | None, typer.Option(help="Raise an alert at this part of a budget: 0.8.")
    ] = None,
    at_limit: Annotated[
        str | None, typer.Option(help="When a budget is full: refuse, cheap_tiers or review.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Requests begun a minute.")
    ] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens in and out.")] = None,
    max_parallel_requests: Annotated[int | None, typer.Option(help="At once.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Longest prompt.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    max_request_usd: Annotated[str | None, typer.Option(help="Most for one request.")] = None,
    json: Json = False,
) -> None:
    """Make a key. The secret is printed once and cannot be shown again.

    Example: factory keys create --team support --daily-usd 5 --requests-per-minute 60
    """
    from factory.config import Budget, Limits
    from factory.ledger.keys import create_key

    budget = _section(
        Budget,
        hourly_usd=hourly_usd,
        daily_usd=daily_usd,
        weekly_usd=weekly_usd,
        monthly_usd=monthly_usd,
        alert_at=alert_at,
        at_limit=at_limit,
    )
    limits = _section(
        Limits,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_parallel_requests=max_parallel_requests,
        max_input_tokens=max_input_tokens,
        max_output_tokens=max_output_tokens,
        max_request_usd=max_request_usd,
    )
    this = state(context)
    with this.ledger() as ledger:
        secret, key = create_key(
            ledger,
            this.settings,
            team,
            endpoint or ["*"],
            roles=role or ["inference"],
            budget=budget,
            limits=limits,
        )
    if json:
        emit({"secret": secret, **key.as_dict()})
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
        emit({"keys": [key.as_dict() for key in found]})
        return
    table(
        (
            *("key", "starts with", "team", "endpoints", "roles", "budget", "limits"),
            *("created", "revoked"),
        ),
        [
            (
                key.key_id,
                key.prefix,
                key.team,
                ", ".join(key.endpoints),
                ", ".join(key.roles),
                _listed(key.budget),
                _listed(key.limits),
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
    """Make a key useless, for ever: at the latest one second from now.

    Example: factory keys revoke key-0123456789ab
    """
    from factory.ledger.keys import revoke as end

    with state(context).ledger() as ledger:
        key = end(ledger, key_id)
    if json:
        emit(key.as_dict())
    else:
        typer.echo(f"{key.key_id} of team {key.team} is revoked.")


def _section(kind: type[_Section], **options: Any) -> _Section:
    """The options that were given, as a section of the configuration; else a usage error."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(
            {name: each for name, each in options.items() if each is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise typer.BadParameter(first["msg"], param_hint=option) from error


def _listed(section: Budget | Limits) -> str:
    given = section.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(
        f"{name} {'/'.join(map(str, each)) if isinstance(each, list) else each}"
        for name, each in given.items()
    )

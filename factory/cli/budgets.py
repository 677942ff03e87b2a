"""`factory budgets …`: what is left of each, which alerts were raised, are the sums right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from factory.cli.console import Json, emit, state, table

app = typer.Typer(
    name="budgets",
    invoke_without_command=True,
    help="Budgets of teams, keys and endpoints.",
    epilog="Example: factory budgets --json",
)


@app.callback()
def show(context: typer.Context, json: Json = False) -> None:
    """Every budget: limit, spent, reserved for requests in progress, left, and when it resets.

    Example: factory budgets
    """
    if context.invoked_subcommand is not None:
        return
    from factory.ledger.budgets import status
    from factory.ledger.money import usd

    this = state(context)
    with this.ledger() as ledger:
        found = status(ledger, this.settings, datetime.now(UTC))
    if json:
        emit({"budgets": [standing.as_dict() for standing in found]})
        return
    table(
        (
            "budget",
            "window",
            "limit USD",
            "spent",
            "reserved",
            "left",
            "share",
            "at limit",
            "resets",
        ),
        [
            (
                standing.scope,
                standing.window,
                usd(standing.limit_nusd),
                usd(standing.spent_nusd),
                usd(standing.reserved_nusd),
                usd(standing.left_nusd),
                f"{standing.share:.1%}",
                standing.act,
                f"{standing.resets_at:%Y-%m-%d %H:%M}",
            )
            for standing in found
        ],
        "There is no budget. Set one under teams.NAME.budget or endpoints.NAME.budget in "
        "factory.yaml, or with `factory keys create --daily-usd`.",
    )


@app.command()
def alerts(
    context: typer.Context,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC.")
    ] = None,
    json: Json = False,
) -> None:
    """The alerts that were raised, oldest first.

    Example: factory budgets alerts --since 2026-11-01
    """
    from factory.ledger.alerts import raised
    from factory.ledger.money import usd

    with state(context).ledger() as ledger:
        found = raised(ledger, since and since.replace(tzinfo=UTC))
    if json:
        emit({"alerts": [alert.as_dict() for alert in found]})
        return
    table(
        ("raised", "budget", "window", "began", "at", "spent USD", "limit USD"),
        [
            (
                f"{alert.created_at:%Y-%m-%d %H:%M}",
                alert.scope,
                alert.window,
                f"{alert.starts_at:%Y-%m-%d %H:%M}",
                f"{alert.fraction:.0%}",
                usd(alert.spent_nusd),
                usd(alert.limit_nusd),
            )
            for alert in found
        ],
        "No alert was raised.",
    )


@app.command()
def check(context: typer.Context, json: Json = False) -> None:
    """Add everything up again and compare; exit code 1 when a sum is not right.

    Example: factory budgets check
    """
    from factory.ledger.money import usd
    from factory.ledger.spend import reconcile

    with state(context).ledger() as ledger:
        found = reconcile(ledger)
    if json:
        emit({"differences": [difference.as_dict() for difference in found]})
    else:
        table(
            ("budget", "window", "began", "spent", "charged", "reserved", "held"),
            [
                (
                    each.place.scope,
                    each.place.window,
                    f"{each.place.starts_at:%Y-%m-%d %H:%M}",
                    *map(usd, (each.kept.spent_nusd, each.counted.spent_nusd)),
                    *map(usd, (each.kept.reserved_nusd, each.counted.reserved_nusd)),
                )
                for each in found
            ],
            "Every sum is what charges and open reservations add up to.",
        )
    if found:
        raise typer.Exit(1)

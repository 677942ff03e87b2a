"""`factory tco`: own machines against a cloud against both."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.console import Json, emit, state, table

Moment = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC.")
]


def tco(
    context: typer.Context,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: load, own, cloud, months, …")
    ] = None,
    from_ledger: Annotated[
        bool, typer.Option("--from-ledger", help="Take the load from the real node-hours.")
    ] = False,
    since: Moment = None,
    until: Moment = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw break-even and sensitivity, PNG/SVG.")
    ] = None,
    assumptions: Annotated[
        bool, typer.Option("--assumptions", help="List every value with its date and source.")
    ] = False,
    json: Json = False,
) -> None:
    """What the load costs a month on own machines, in a cloud, and on both, with the break-even.

    Prices are those of the configured pools unless the plan states its own.

    Example: factory tco --from-ledger --plot tco.png
    """
    from factory.cluster.specs import read
    from factory.cluster.tco import comparison as model
    from factory.cluster.tco.load import measured, priced, usage_by_hour

    this = state(context)
    stated = model.Plan() if plan is None else read(plan, model.Plan)
    if from_ledger:
        with this.ledger() as ledger:
            hours = usage_by_hour(ledger, _utc(since), _utc(until))
        stated = measured(hours, this.settings.pools, stated)
    else:
        stated = priced(stated, this.settings.pools)
    found = model.compare(stated)
    if plot is not None:
        from factory.cluster.tco.plot import draw

        draw(found, plot)
    if json:
        emit(found.as_dict())
        return
    kinds = list(dict.fromkeys(kind for way in found.ways for kind in way.parts))
    table(
        ("USD a month", *(f"{way.name} ({way.own_nodes} own)" for way in found.ways)),
        [
            *((kind, *(f"{way.parts.get(kind, 0):,.0f}" for way in found.ways)) for kind in kinds),
            ("total", *(f"{way.usd_per_month:,.0f}" for way in found.ways)),
        ],
        "",
    )
    typer.echo(f"Cheapest: {found.cheapest.name}")
    typer.echo(f"Own nodes for all of the load would be busy {found.utilization:.0%} of the time.")
    share, month = found.break_even_utilization, found.break_even_month
    typer.echo(
        "Break-even: none between 0 and full use."
        if share is None
        else f"Break-even: own nodes cost less than the cloud from {share:.0%} busy on."
    )
    typer.echo(
        f"Money spent on own nodes stays above the cloud's for all {stated.months} months."
        if month is None
        else f"In cash, own nodes are ahead from month {month} on."
    )
    widest = ", ".join(swing.assumption for swing in found.swings[:3])
    typer.echo(f"What moves the break-even most: {widest}")
    if assumptions:
        table(
            ("assumption", "value", "date", "source"),
            [
                (key, f"{value:g}", date, source or "stated, or from the configured pools")
                for key, value, date, source in model.assumptions(stated)
            ],
            "",
        )


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)

"""`factory place`: where a piece of work would run, why, and what it would cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.console import Json, emit, state, table


def place(
    context: typer.Context,
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="YAML: class, cpus, hours, deadline, data, …")
    ],
    json: Json = False,
) -> None:
    """Where work would run, with every option, before anything starts or is paid.

    Exit code 1 when no pool fits now. Example: factory place tune.yaml, where tune.yaml says
    {name: tune, class: batch, gpus: 1, hours: 6, sensitivity: internal}
    """
    from factory.cluster.capacity import Capacity
    from factory.cluster.placement import Work
    from factory.cluster.placement import place as decide
    from factory.cluster.specs import read
    from factory.cluster.spot.jobs import SpotJobs
    from factory.ledger.money import usd
    from factory.ledger.zones import prices

    this = state(context)
    settings, now = this.settings, datetime.now(UTC)
    work = read(spec, Work)
    capacity = Capacity.now(settings)
    with this.ledger() as ledger:
        decided = decide(
            work,
            settings.pools,
            now=now,
            free=capacity.free,
            machine=capacity.sizes,
            prices=prices(ledger, now),
            spot=SpotJobs(settings, ledger).estimate(work, now),
        )
    if json:
        emit(decided.as_dict())
    else:
        table(
            ("pool", "market", "", "node-hours", "cost USD", "extra USD", "transfer USD", "why"),
            [
                (
                    option.pool,
                    option.market,
                    "chosen" if option.pool == decided.pool else "fits" if option.fits else "no",
                    f"{option.hours:.1f}",
                    usd(option.cost_nusd)[:-5],
                    usd(option.extra_nusd)[:-5],
                    usd(option.transfer_nusd)[:-5],
                    option.why,
                )
                for option in decided.options
            ],
            "There is no pool.",
        )
        for reason in decided.reasons[: 1 if decided.pool is None else None]:
            typer.echo(reason)
    if decided.pool is None:
        raise typer.Exit(1)

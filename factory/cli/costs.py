"""`factory costs …`: what the traffic cost, and why."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.console import Json, State, emit, state, table

if TYPE_CHECKING:
    from factory.ledger.report import AccountLine, CostsReport
    from factory.ledger.success import SuccessLine, SuccessReport

app = typer.Typer(name="costs", no_args_is_help=True, help="What the traffic cost, and why.")
Moment = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC.")
]


class Basis(StrEnum):
    """What a cost is counted by."""

    allocation = "allocation"
    usage = "usage"


@app.command()
def report(
    context: typer.Context,
    since: Moment = None,
    until: Moment = None,
    human_usd_per_hour: Annotated[
        float, typer.Option(min=0, max=1e6, help="What an hour of a person costs.")
    ] = 45.0,
    basis: Annotated[
        Basis,
        typer.Option(
            help="allocation: list prices, for chargeback; usage: what nodes really cost."
        ),
    ] = Basis.allocation,
    by: Annotated[
        str, typer.Option(help="metadata.KEY: by what clients send as metadata of their requests.")
    ] = "",
    json: Json = False,
) -> None:
    """Spend by tier, endpoint and team, the same traffic priced at the top tier, and the cost of
    a successful outcome with people's time; or, on the usage basis, where the node-hours went.

    Example: factory costs report --since 2026-11-01 --by metadata.project
    """
    from factory.config import NANO
    from factory.ledger.costs import costs

    if math.isnan(human_usd_per_hour):
        raise typer.BadParameter("--human-usd-per-hour must be a number")
    this = state(context)
    if by:
        kind, _, key = by.partition(".")
        if kind != "metadata" or not key or basis is Basis.usage:
            raise typer.BadParameter("--by takes metadata.KEY, on the allocation basis")
        _report_tags(this, key, _utc(since), _utc(until), json)
        return
    if basis is Basis.usage:
        _report_usage(this, _utc(since), _utc(until), json)
        return
    human_nusd_per_hour = int(Decimal(str(human_usd_per_hour)) * NANO)
    with this.ledger() as ledger, ledger.read() as connection:
        found = costs(connection, _utc(since), _utc(until), human_nusd_per_hour)
    if json:
        emit(found.as_dict())
    else:
        _show(found, this.settings.top_model)


def _report_tags(
    this: State, key: str, since: datetime | None, until: datetime | None, json: bool
) -> None:
    from factory.ledger.tagged import by_tag

    with this.ledger() as ledger:
        lines = by_tag(ledger, key, since, until)
    if json:
        emit({"by": f"metadata.{key}", "lines": [line.as_dict() for line in lines]})
        return
    table(
        (key, "requests", "answered", "tokens in", "tokens out", "USD"),
        [
            (
                "(none)" if line.value is None else line.value,
                str(line.requests),
                str(line.answered),
                str(line.prompt_tokens),
                str(line.completion_tokens),
                _usd(line.cost_nusd),
            )
            for line in lines
        ],
        "No request was made in this time.",
    )


def _report_usage(this: State, since: datetime | None, until: datetime | None, json: bool) -> None:
    from factory.ledger.nodes import usage

    with this.ledger() as ledger:
        found = usage(ledger, since, until)
    if json:
        emit(found.as_dict())
        return
    table(
        ("pool", "node-hours", "total USD", "workload", "idle", "overhead", "utilization"),
        [
            (
                pool.pool,
                f"{pool.hours:.2f}",
                _usd(pool.total_nusd),
                _usd(pool.workload_nusd),
                _usd(pool.idle_nusd),
                _usd(pool.overhead_nusd),
                "" if pool.utilization is None else f"{pool.utilization:.1%}",
            )
            for pool in found.pools
        ],
        "No node-hour was counted in this time; the meter runs beside `factory up`.",
    )
    table(
        ("by", "", "calls", "usage USD", "allocation USD"),
        [
            (line.kind, line.name, line.requests, _usd(line.usage_nusd), _usd(line.allocation_nusd))
            for line in found.lines
        ],
        "Nothing used them.",
    )


@app.command()
def explain(
    context: typer.Context,
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="From the x-factory-request-id header.")
    ],
    json: Json = False,
) -> None:
    """Why a request was routed so, and what each part cost.

    Example: factory costs explain req_0123
    """
    from factory.ledger.explanation import explain as why
    from factory.ledger.nodes import usage_of
    from factory.ledger.outcomes import latest

    with state(context).ledger() as ledger:
        found = ledger.settled(request_id)
        explanation = why(*found, latest(ledger, request_id), usage_of(ledger, found[1]))
    if json:
        emit(explanation.as_dict())
    else:
        typer.echo("\n".join(explanation.lines()))


class Period(StrEnum):
    """What one row of an export covers."""

    hour = "hour"
    day = "day"
    charge = "charge"


@app.command()
def export(
    context: typer.Context,
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="Ends in .csv or .parquet.", dir_okay=False)
    ],
    since: Moment = None,
    until: Moment = None,
    per: Annotated[
        Period, typer.Option(help="One row per hour or day and group, or one per charge.")
    ] = Period.hour,
    json: Json = False,
) -> None:
    """Write costs in FOCUS 1.2 columns: requests and jobs as charged, nodes as they really cost.

    BilledCost adds up to what teams are charged (x_CostBasis allocation), EffectiveCost to what
    nodes and providers cost (usage: workload, idle and overhead by pool). Both sums are compared
    with the ledger before the file is there.

    Example: factory costs export november.parquet --since 2026-11-01 --until 2026-12-01
    """
    from factory.ledger.export import export as write

    this = state(context)
    with this.ledger() as ledger:
        found = write(ledger, this.settings, output, _utc(since), _utc(until), per.value)
    if json:
        emit(
            {
                "path": str(found.path),
                "rows": found.rows,
                "billed_usd": _usd(found.billed_nusd),
                "effective_usd": _usd(found.effective_nusd),
            }
        )
        return
    typer.echo(f"{found.path}: {found.rows} rows in FOCUS 1.2 columns")
    typer.echo(f"charged to teams (BilledCost):       {_usd(found.billed_nusd)} USD")
    typer.echo(f"nodes and providers (EffectiveCost): {_usd(found.effective_nusd)} USD")


def _show(report: CostsReport, top_model: str) -> None:
    total = report.total
    typer.echo(
        f"{total.requests} requests: {total.answered} answered, {total.refused} refused, "
        f"{total.errors} failed, {total.cache_hits} from the cache, {total.degraded} degraded"
    )
    if not total.requests:
        return
    table(
        ("tier", "answered", "share", "calls", "cost USD"),
        [
            (
                "none" if line.tier is None else line.tier,
                line.answered,
                f"{line.share:.1%}",
                line.calls,
                _usd(line.cost_nusd),
            )
            for line in report.by_tier
        ],
        "No tier was used.",
    )
    _accounts("endpoint", report.by_endpoint)
    _accounts("team", report.by_team)
    _successes(report.success)
    if report.latency_p50_ms is not None and report.latency_p95_ms is not None:
        typer.echo(
            f"Latency: p50 {report.latency_p50_ms:.0f} ms, p95 {report.latency_p95_ms:.0f} ms"
        )
    share = "" if report.saving_share is None else f" ({report.saving_share:.1%})"
    typer.echo(f"Spent:                       {_usd(total.cost_nusd)} USD")
    typer.echo(f"Per 1,000 requests:          {_usd(report.cost_per_1k_nusd)} USD")
    typer.echo(f"The same all at {top_model}:".ljust(29) + f"{_usd(total.top_tier_nusd)} USD")
    typer.echo(f"Saved:                       {_usd(report.saving_nusd)} USD{share}")
    success = report.success.total
    if success.succeeded:
        typer.echo(f"Per successful outcome:      {_usd(success.cost_per_success_nusd)} USD")
    if success.cheapest_viable_share is not None:
        typer.echo(f"On the cheapest viable tier: {success.cheapest_viable_share:.1%}, or more")


def _accounts(what: str, lines: tuple[AccountLine, ...]) -> None:
    table(
        (what, "requests", "answered", "tokens in", "tokens out", "cost USD", "per 1,000", "saved"),
        [
            (
                line.name or "unknown",
                line.requests,
                line.answered,
                line.prompt_tokens,
                line.completion_tokens,
                _usd(line.cost_nusd),
                _usd(line.cost_per_1k_nusd),
                _usd(line.saving_nusd),
            )
            for line in lines
        ],
        f"No {what} asked for anything.",
    )


def _successes(report: SuccessReport) -> None:
    if not report.total.reported:
        return
    hour = report.human_nusd_per_hour / 1e9
    typer.echo(
        f"Outcomes: {report.total.reported} reported, {report.total.succeeded} successful; "
        f"an hour of a person at {hour:g} USD"
    )
    parts: tuple[tuple[str, tuple[SuccessLine, ...]], ...] = (
        ("team", report.by_team),
        ("endpoint", report.by_endpoint),
        ("model", report.by_model),
        ("tier", report.by_tier),
    )
    table(
        ("by", "", "reported", "successful", "minutes", "cost USD", "human USD", "per success"),
        [
            (
                what,
                line.name or "none",
                line.reported,
                line.succeeded,
                f"{line.human_minutes:g}",
                _usd(line.cost_nusd),
                _usd(line.human_nusd),
                _usd(line.cost_per_success_nusd),
            )
            for what, lines in parts
            for line in lines
            if line.reported
        ],
        "No outcome was reported.",
    )


def _usd(nusd: int | None) -> str:
    from factory.ledger.money import usd

    return "" if nusd is None else usd(nusd)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)

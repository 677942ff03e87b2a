"""`factory cache …`: tier 0's semantic cache, switched on by a calibration and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.console import Json, emit, progress, state, table

if TYPE_CHECKING:
    from factory.config import Settings

app = typer.Typer(name="cache", no_args_is_help=True, help="The semantic cache.")


@app.command()
def calibrate(
    context: typer.Context,
    team: Annotated[str, typer.Option(help="The team whose cache it is.")],
    endpoint: Annotated[str, typer.Option(help="The endpoint.")],
    pairs: Annotated[
        Path, typer.Option(metavar="FILE.csv", help="Labelled pairs: columns a, b, same (1 or 0).")
    ],
    json: Json = False,
) -> None:
    """Find the threshold whose false hits are provably few; without one the cache stays off.

    A pair that differs should look alike: that is what a cache meets. About 300 of them are
    needed to show 1 % with 95 % confidence.

    Example: factory cache calibrate --team support --endpoint helpdesk --pairs pairs.csv
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from factory.catalog.objects import ObjectStore
    from factory.embedding import StaticEmbedder, installed
    from factory.gateway.semantic import calibrate as decide
    from factory.gateway.semantic.labelled import read_pairs
    from factory.gateway.semantic.score import PairModel
    from factory.gateway.semantic.thresholds import save, scope_of

    this = state(context)
    settings = this.settings
    _check(settings, team, endpoint)
    labelled = read_pairs(pairs)
    with progress() as tell:
        static = installed.make(settings, ObjectStore(settings.objects), tell)
        embedder = StaticEmbedder.load(static.path)
        model = PairModel(embedder)
        tell(f"comparing {len(labelled)} pairs")
        scores = [model.compare(pair.a, pair.b).score for pair in labelled]
    found = decide(
        scores,
        [pair.same for pair in labelled],
        max_false_hits=settings.cache.semantic.max_false_hits,
        confidence=settings.cache.semantic.confidence,
    )
    scope = scope_of(team, endpoint)
    with this.ledger() as ledger:
        save(ledger, scope, embedder.hash, found, datetime.now(UTC))
    on = settings.endpoints[endpoint].semantic_cache
    if json:
        emit({"scope": scope, "endpoint_on": on, **asdict(found)})
        return
    typer.echo(f"{scope}: " + "; ".join(found.reasons))
    if found.threshold is not None:
        typer.echo(f"{found.hit_rate:.0%} of the pairs with one meaning hit")
    if not on:
        typer.echo(f"Set endpoints.{endpoint}.semantic_cache: true to use it.", err=True)


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Show which semantic caches are on, and what their thresholds rest on.

    Example: factory cache status
    """
    from factory.catalog.objects import ObjectStore
    from factory.embedding import StaticEmbedder, installed
    from factory.gateway.semantic.thresholds import KIND, scope_of, subject_of
    from factory.ledger.calibrations import newest

    this = state(context)
    settings = this.settings
    static = installed.find(settings, ObjectStore(settings.objects))
    subject = subject_of(StaticEmbedder.load(static.path).hash) if static else None
    rows = []
    with this.ledger() as ledger:
        for team in settings.teams:
            for name, endpoint in settings.endpoints.items():
                kept = newest(ledger, KIND, scope_of(team, name))
                if kept is None and not (endpoint.semantic_cache and endpoint.team == team):
                    continue
                detail = dict(kept.detail) if kept else {}
                if not endpoint.semantic_cache:
                    why = f"off: endpoints.{name}.semantic_cache is false"
                elif kept is None:
                    why = "off: not calibrated; run `factory cache calibrate`"
                elif subject is None or not kept.holds_for(subject):
                    why = "off: calibrated for another embedder; calibrate again"
                elif detail["threshold"] is None:
                    why = detail["reasons"][0]
                else:
                    why = "on"
                rows.append(
                    {
                        "scope": scope_of(team, name),
                        "on": why == "on",
                        "why": why,
                        "calibrated_at": kept and kept.created_at,
                        **{key: detail.get(key) for key in ("threshold", "bound", "n", "hit_rate")},
                    }
                )
    if json:
        emit({"caches": rows})
        return
    table(
        ("cache", "state", "threshold", "bound", "pairs", "hit rate", "calibrated"),
        [
            (
                row["scope"],
                row["why"],
                row["threshold"],
                row["bound"] and f"{row['bound']:.2%}",
                row["n"],
                row["hit_rate"] and f"{row['hit_rate']:.0%}",
                row["calibrated_at"] and f"{row['calibrated_at']:%Y-%m-%d %H:%M}",
            )
            for row in rows
        ],
        "No endpoint has `semantic_cache: true`, and none is calibrated.",
    )


def _check(settings: Settings, team: str, endpoint: str) -> None:
    """Wrong names are wrong usage: exit code 2."""
    if team not in settings.teams:
        known = ", ".join(sorted(settings.teams))
        raise typer.BadParameter(f"there is no team '{team}'; there is {known}")
    if endpoint not in settings.endpoints:
        known = ", ".join(sorted(settings.endpoints))
        raise typer.BadParameter(f"there is no endpoint '{endpoint}'; there is {known}")

"""`factory eval …`: judge models by a suite and compare what came out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from factory.cli.console import Json, emit, progress, state

app = typer.Typer(name="eval", no_args_is_help=True, help="Judge models by a suite.")


@app.command()
def run(
    context: typer.Context,
    suite: Annotated[str, typer.Option(help="A stored suite's name, or a file.")] = "helpdesk",
    model: Annotated[
        str | None, typer.Option(help="Catalog model; default: the lowest tier.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A stored adapter's name, or its folder.")
    ] = None,
    cases: Annotated[int | None, typer.Option(min=1, help="Judge only a seeded sample.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    json: Json = False,
) -> None:
    """Judge a model, or an adapter on it, on this machine, and save the results.

    Example: factory eval run --suite helpdesk --adapter helpdesk
    """
    from factory.sdk import Factory

    this = state(context)
    name = model or min(this.settings.models, key=lambda item: this.settings.models[item].tier)
    done = 0
    with progress() as tell, Factory(this.config, progress=tell) as factory:

        def count(more: int) -> None:
            nonlocal done
            done += more
            tell(f"{done} cases are judged")

        judged = factory.evaluate(
            suite, name, adapter=adapter, cases=cases, seed=seed, progress=count
        )
    summary = judged.results.summary
    if json:
        emit({"name": judged.item.name, "reused": judged.reused, **summary.model_dump(mode="json")})
        return
    typer.echo(
        f"{summary.suite_name} v{summary.suite_version}, {summary.cases} cases: accuracy "
        f"{summary.accuracy:.1%} [{summary.low:.1%}, {summary.high:.1%}], "
        f"p95 {summary.p95_ms:.0f} ms"
    )
    typer.echo(f"Saved as {judged.item.name}{' before' if judged.reused else ''}.")


@app.command()
def compare(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Name of saved results.")],
    candidate: Annotated[str, typer.Argument(help="Name of saved results.")],
    json: Json = False,
) -> None:
    """Is the candidate better than the base? With a 95 % interval.

    Example: factory eval compare helpdesk-0123456789abcdef helpdesk-fedcba9876543210
    """
    from factory.sdk import Factory

    with Factory(state(context).config) as factory:
        found = factory.compare(base, candidate)
    if json:
        emit(asdict(found))
    else:
        typer.echo(str(found))

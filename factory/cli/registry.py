"""`factory registry …`: versions, who is champion, and how it came to be."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from factory.cli.console import Json, State, emit, progress, state, table

app = typer.Typer(name="registry", no_args_is_help=True, help="Versions and promotion.")
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]
Serve = Annotated[bool, typer.Option(help="Deploy it at once where the gateway is up.")]


@app.command("list")
def list_(context: typer.Context, name: ModelName, json: Json = False) -> None:
    """Show the versions of a registered model.

    Example: factory registry list helpdesk
    """
    from factory.registry.versions import Registry

    this = state(context)
    with this.ledger() as ledger:
        registry = Registry(this.settings, ledger)
        versions, champion = registry.list(name), registry.champion(name)
    best = champion and champion.version
    if json:
        emit({"name": name, "champion": best, "versions": [asdict(item) for item in versions]})
        return
    table(
        ("version", "champion", "accuracy", "folder"),
        [
            (
                item.version,
                "yes" if item.version == best else "",
                f"{item.metrics.accuracy:.1%}",
                item.path,
            )
            for item in versions
        ],
        f"There is no version of '{name}'.",
    )


@app.command()
def promote(
    context: typer.Context,
    name: ModelName,
    version: Annotated[int, typer.Argument(help="The candidate.")],
    serve: Serve = True,
    json: Json = False,
) -> None:
    """Make a version champion if it passes its gate, and serve it; exit code 1 if it does not.

    Example: factory registry promote helpdesk 3
    """
    from factory.registry.versions import Registry

    this = state(context)
    with this.ledger() as ledger:
        decision = Registry(this.settings, ledger).promote(name, version)
    url = _serve(this) if serve and decision.passed else None
    if json:
        emit({"passed": decision.passed, "reasons": decision.reasons, "served_at": url})
    else:
        verdict = "is champion now" if decision.passed else "did not pass"
        typer.echo(f"{name} version {version} {verdict}:")
        for reason in decision.reasons:
            typer.echo(f"  {reason}")
        if url is not None:
            typer.echo(f"It is served at {url}.")
    if not decision.passed:
        raise typer.Exit(1)


@app.command()
def rollback(
    context: typer.Context, name: ModelName, serve: Serve = True, json: Json = False
) -> None:
    """Make the previous champion champion again, and serve it.

    Example: factory registry rollback helpdesk
    """
    from factory.registry.versions import Registry

    this = state(context)
    with this.ledger() as ledger:
        version = Registry(this.settings, ledger).rollback(name)
    url = _serve(this) if serve else None
    if json:
        emit({"name": name, "version": version, "served_at": url})
    else:
        served = "" if url is None else f" and served at {url}"
        typer.echo(f"{name} version {version} is champion again{served}.")


@app.command()
def log(context: typer.Context, name: ModelName, json: Json = False) -> None:
    """Show every promotion decision, oldest first.

    Example: factory registry log helpdesk
    """
    from factory.ledger.promotions import history

    with state(context).ledger() as ledger:
        entries = history(ledger, name)
    if json:
        emit({"name": name, "promotions": [asdict(entry) for entry in entries]})
        return
    table(
        ("when", "action", "version", "before", "by", "reasons"),
        [
            (
                f"{entry.created_at:%Y-%m-%d %H:%M}",
                entry.action,
                entry.version,
                entry.previous,
                entry.actor,
                "; ".join(entry.reasons),
            )
            for entry in entries
        ],
        f"Nothing has been decided about '{name}'.",
    )


def _serve(this: State) -> str | None:
    """Deploy the champion of now where a gateway is up; its URL, or None."""
    from factory.cluster import serving

    if serving.status(this.settings).url is None:
        return None
    with progress() as tell:
        return serving.deploy(this.settings, config=this.config_file, progress=tell).url


@app.command()
def reproduce(
    context: typer.Context,
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered version.")],
    json: Json = False,
) -> None:
    """Make a version again from its lineage and compare; exit code 3 if it comes out otherwise.

    Example: factory registry reproduce helpdesk@3
    """
    said, code = _again(state(context), version)
    if json:
        emit(said)
    elif said["bitwise_equal"]:
        typer.echo(f"{version} is reproduced bit for bit: {said['hash'][:16]}.")
    else:
        scores = said["scores"]
        typer.echo(
            f"{version} came out as {said['again'][:16]}, not {said['hash'][:16]}: accuracy "
            f"{scores['again']:.1%}, {'within' if scores['within'] else 'outside'} the original's "
            f"95 % interval of {scores['low']:.1%} to {scores['high']:.1%}."
        )
        for library, (then, now) in said["changed_versions"].items():
            typer.echo(f"  {library} was {then} and is {now}")
    raise typer.Exit(code)


@app.command()
def retrain(
    context: typer.Context,
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered version.")],
    json: Json = False,
) -> None:
    """Train a version again as a new candidate, from the registry and the object store alone.

    Example: factory registry retrain helpdesk@3
    """
    said, code = _again(state(context), version, "--retrain")
    if json:
        emit(said)
    else:
        typer.echo(f"{version} was trained again: {said['candidate']}")
        typer.echo(f"Judge it with `{said['next']}`.")
    raise typer.Exit(code)


def _again(this: State, *arguments: str) -> tuple[dict[str, Any], int]:
    """Run `pipelines.reproduce` in a process of its own; what it said and its exit code."""
    from factory.cluster.local import environment

    done = subprocess.run(
        [sys.executable, "-m", "pipelines.reproduce", *arguments],
        env=environment(this.settings, this.config_file),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise typer.Exit(done.returncode or 1)
    return dict(json_module.loads(lines[-1])), done.returncode

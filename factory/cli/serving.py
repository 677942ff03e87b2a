"""`factory up`, `factory down`, `factory status`: the whole line on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.console import Json, emit, progress, state


def up(
    context: typer.Context,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs the cluster may use; default: all.")
    ] = None,
    autoscale: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Cluster configuration by which Ray's autoscaler adds and ends nodes.",
        ),
    ] = None,
    ray_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where other machines join; default: a free port."),
    ] = None,
    json: Json = False,
) -> None:
    """Pull missing models, start the cluster, serve the gateway.

    Example: factory up --cpus 2
    """
    from factory.cluster import serving

    this = state(context)
    with progress() as tell:
        found = serving.up(
            this.settings,
            config=this.config_file,
            cpus=cpus,
            autoscaling=autoscale,
            port=ray_port,
            progress=tell,
        )
    if json:
        emit(asdict(found))
        return
    team = next(iter(this.settings.teams), "TEAM")
    typer.echo(f"The gateway answers at {found.url}")
    typer.echo(f"Ray's dashboard:  {found.dashboard}")
    for note in found.notes:
        typer.echo(f"Note: {note}")
    typer.echo("\nNext:")
    for command, meaning in (
        (f"factory keys create --team {team}", "an API key, shown once"),
        ("factory status", "what runs"),
        ("factory costs report", "what it cost"),
        ("factory down", "stop everything"),
    ):
        typer.echo(f"  {command:<40}{meaning}")


def down(context: typer.Context, json: Json = False) -> None:
    """Stop the gateway and the cluster. Doing it twice is fine.

    Example: factory down
    """
    from factory.cluster import serving

    stopped = serving.down(state(context).settings)
    if json:
        emit({"stopped": stopped})
    else:
        typer.echo("Everything is stopped." if stopped else "Nothing was running.")


def status(context: typer.Context, json: Json = False) -> None:
    """Say what runs. The exit code is 0 when the gateway answers, else 1.

    Example: factory status --json
    """
    from factory.cluster import serving

    found = serving.status(state(context).settings)
    if json:
        cluster = found.cluster
        emit(
            {
                "up": cluster is not None,
                "url": found.url,
                "healthy": found.healthy,
                "address": cluster and cluster.address,
                "dashboard": cluster and cluster.dashboard,
                "pid": cluster and cluster.pid,
                "nodes": found.nodes,
                "cpus": found.cpus,
                "asleep": list(found.asleep),
            }
        )
    elif found.cluster is None:
        typer.echo("Nothing runs. Start with `factory up`.")
    else:
        gateway = "none deployed" if found.url is None else found.url
        answers = "" if found.url is None else ", answers" if found.healthy else ", does not answer"
        typer.echo(f"Gateway:  {gateway}{answers}")
        if found.asleep:
            typer.echo(f"Asleep:   {', '.join(found.asleep)} (the next request wakes them)")
        typer.echo(
            f"Cluster:  {found.cluster.address}, {found.nodes} node(s), {found.cpus:g} CPUs, "
            f"process {found.cluster.pid}"
        )
        typer.echo(f"Ray's dashboard:  {found.cluster.dashboard}")
        typer.echo(
            f"Ray's own commands: export RAY_AUTH_MODE={found.cluster.auth} "
            f"RAY_API_SERVER_ADDRESS={found.cluster.dashboard}"
        )
    if not found.healthy:
        raise typer.Exit(1)

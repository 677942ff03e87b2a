"""`factory stores …`: the vector stores of the teams, filled over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from factory.cli.console import Json, emit, size, state, table

app = typer.Typer(name="stores", no_args_is_help=True, help="The vector stores of the teams.")


@app.command("list")
def list_(
    context: typer.Context,
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    json: Json = False,
) -> None:
    """Show every store with its encoder, and how much it holds.

    Example: factory stores list --team support
    """
    import asyncio

    from factory.vectors import VectorStores
    from factory.vectors.store import usage

    this = state(context)
    teams = [_known(this.settings.teams, team)] if team else list(this.settings.teams)

    async def read() -> list[dict[str, object]]:
        stores = VectorStores(this.settings.vectors_url)
        rows: list[dict[str, object]] = []
        for name in teams:
            for store in await stores.all(name):
                files = await stores.files(name, store.store_id)
                rows.append(
                    {
                        "id": store.store_id,
                        "team": name,
                        "name": store.name,
                        "endpoint": store.endpoint,
                        "embedder": store.embedder,
                        "files": len(files),
                        "chunks": sum(one.chunks for one in files),
                        "bytes": usage(store, files),
                    }
                )
        return rows

    rows = asyncio.run(read())
    if json:
        emit({"stores": rows})
        return
    columns = ("id", "team", "name", "endpoint", "files", "chunks")
    table(
        (*columns, "size"),
        [(*(row[key] for key in columns), size(int(str(row["bytes"])))) for row in rows],
        "No team has a vector store; POST /v1/vector_stores makes one.",
    )


@app.command()
def delete(
    context: typer.Context,
    store_id: Annotated[str, typer.Argument(metavar="STORE", help="The id, as `list` shows it.")],
    team: Annotated[str, typer.Option(help="Whose it is.")],
    json: Json = False,
) -> None:
    """Delete a store with everything in it; the audit log keeps that it was deleted.

    Example: factory stores delete vs_0123… --team support
    """
    import asyncio
    import getpass
    from datetime import UTC, datetime

    from factory.ledger import audit
    from factory.vectors import VectorStores

    this = state(context)
    name = _known(this.settings.teams, team)
    with this.ledger() as ledger:
        asyncio.run(VectorStores(this.settings.vectors_url).delete(name, store_id))
        event = audit.Event(
            created_at=datetime.now(UTC),
            actor=getpass.getuser(),
            action="vector_store.delete",
            subject=store_id,
            detail={"team": name},
        )
        with ledger.write() as connection:
            audit.seal(connection, [event])
    if json:
        emit({"id": store_id, "team": name, "deleted": True})
    else:
        typer.echo(f"{store_id} of team {name} is deleted.")


def _known(teams: Mapping[str, object], name: str) -> str:
    """A wrong name is wrong usage: exit code 2."""
    if name not in teams:
        raise typer.BadParameter(f"there is no team '{name}'; there is {', '.join(sorted(teams))}")
    return name

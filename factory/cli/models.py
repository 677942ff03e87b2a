"""`factory models …`: the catalog and its weights."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli.console import Json, emit, progress, size, state, table

app = typer.Typer(name="models", no_args_is_help=True, help="The catalog and its weights.")


@app.command()
def pull(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Models; default: all with weights."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option(help="Fetch again, for a branch or a folder that has moved on.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring weights into the object store.

    Example: factory models pull smollm2-135m
    """
    from factory.catalog import pull as weights
    from factory.catalog.objects import ObjectStore
    from factory.config import ProviderSource, RegistrySource

    settings = state(context).settings
    store = ObjectStore(settings.objects)
    wanted = names or [
        name
        for name, model in settings.models.items()
        if not isinstance(model.source, ProviderSource | RegistrySource)
    ]
    found = []
    with progress() as tell:
        for name in wanted:
            tell(f"pulling {name}")
            found.append(weights.pull(settings, name, store, tell, refresh=refresh))
    if json:
        emit(
            {
                "models": [
                    {"name": item.name, "hash": item.hash, "path": item.path, **item.meta}
                    for item in found
                ]
            }
        )
        return
    table(
        ("model", "hash", "size", "folder"),
        [(item.name, item.hash[:16], size(item.size_bytes), item.path) for item in found],
        "The catalog has no model with weights.",
    )


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """Show the catalog: tiers, prices, and which weights are here.

    Example: factory models list
    """
    from factory.catalog import pull as weights
    from factory.catalog.objects import ObjectStore
    from factory.config import ProviderSource, RegistrySource

    settings = state(context).settings
    store = ObjectStore(settings.objects)
    rows = []
    for name, model in settings.models.items():
        item = weights.find(settings, name, store)
        if isinstance(model.source, ProviderSource):
            here = "provider ready" if model.source.ready else "off: no address or key"
        elif isinstance(model.source, RegistrySource):
            here = f"the champion of {model.source.name}"
        else:
            here = "not pulled" if item is None else f"{size(item.size_bytes)}, {item.hash[:16]}"
        rows.append(
            {
                "name": name,
                "tier": model.tier,
                "engine": model.engine,
                "input_usd_per_mtok": str(model.price.input_usd_per_mtok),
                "output_usd_per_mtok": str(model.price.output_usd_per_mtok),
                "weights": here,
                "hash": None if item is None else item.hash,
                "path": None if item is None else str(item.path),
            }
        )
    if json:
        emit({"models": rows})
        return
    table(
        ("model", "tier", "engine", "USD/Mtok in", "USD/Mtok out", "weights"),
        [tuple(list(row.values())[:6]) for row in rows],
        "The catalog is empty.",
    )

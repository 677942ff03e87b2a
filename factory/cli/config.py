"""`factory config …`: look at the configuration and check it."""

from __future__ import annotations

from typing import Any

import typer

from factory.cli.console import Json, emit, state

app = typer.Typer(name="config", no_args_is_help=True, help="The configuration.")


@app.command()
def show(context: typer.Context, json: Json = False) -> None:
    """Print the settings in force, secrets masked.

    Example: factory config show
    """
    import yaml

    from factory.config import masked

    values = masked(state(context).settings)
    if json:
        emit(values)
    else:
        typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of factory.yaml: every key with its meaning.

    Example: factory config schema > factory.schema.json
    """
    from factory.config import Settings

    found: dict[str, Any] = Settings.model_json_schema()
    emit(found)


@app.command()
def check(context: typer.Context, json: Json = False) -> None:
    """Check the configuration; an error is explained with its line.

    Example: factory --config factory.yaml config check
    """
    from factory.config import ProviderSource

    this = state(context)
    settings = this.settings
    name = str(this.config_file or "the packaged default")
    off = [
        model
        for model, entry in settings.models.items()
        if isinstance(entry.source, ProviderSource) and not entry.source.ready
    ]
    if json:
        emit({"ok": True, "file": name, "home": settings.home, "providers_off": off})
        return
    typer.echo(
        f"{name} is good: {len(settings.models)} models, {len(settings.endpoints)} endpoints, "
        f"{len(settings.teams)} teams; home is {settings.home}"
    )
    for model in off:
        typer.echo(f"Provider model {model} is off: its address or key is empty.")

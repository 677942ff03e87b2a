"""Finding, reading and explaining `factory.yaml`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from factory.config.section import ConfigError
from factory.config.settings import Settings


def default_text() -> str:
    """The packaged `factory.yaml`, as text."""
    return resources.files("factory").joinpath("factory.yaml").read_text("utf-8")


def find(path: Path | None = None) -> Path | None:
    """The file that `load` reads: the argument, FACTORY_CONFIG, ./factory.yaml, or None."""
    if path is not None:
        return path
    if env := os.environ.get("FACTORY_CONFIG"):
        return Path(env)
    local = Path("factory.yaml")
    return local if local.is_file() else None


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """Read, substitute, check. `home` becomes absolute, relative to the file's folder.

    Raises `ConfigError` with file, line and a hint for anything that does not fit.
    """
    env = os.environ if env is None else env
    found = find(path)
    if found is None:
        return parse(default_text(), "the packaged factory.yaml", Path.cwd(), env)
    try:
        text = found.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration '{found}': {error}. "
            "Pass --config FILE, set FACTORY_CONFIG, or remove both to use the default."
        ) from error
    return parse(text, str(found), found.resolve().parent, env)


def parse(text: str, name: str, folder: Path, env: Mapping[str, str]) -> Settings:
    """Settings from YAML text. `name` is used in messages, `folder` anchors a relative home.

    Raises `ConfigError`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a mapping of sections such as models and endpoints")
    try:
        settings = Settings.model_validate(_substitute(raw, env), context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(explain(error, name, root)) from error
    home = Path(env.get("FACTORY_HOME") or folder / settings.home.expanduser())
    return settings.model_copy(update={"home": home.absolute()})


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain values fit to print: secrets and passwords are masked."""
    return settings.model_dump(mode="json", by_alias=True) | {
        "database": _without_password(settings.database_url),
        "mlflow": _without_password(settings.mlflow_uri),
    }


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@]+@", r"\1:***@", url)


def _substitute(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: env.get(match[1], ""), value)
    if isinstance(value, dict):
        return {key: _substitute(item, env) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, env) for item in value]
    return value


def _line(root: yaml.Node | None, path: tuple[int | str, ...]) -> int:
    """1-based line of the deepest node along `path` that exists in the document."""
    node, line = root, 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if hit is None:
                continue  # a union tag in pydantic's path, not a key of the document
            line, node = hit[0].start_mark.line + 1, hit[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def explain(error: ValidationError, name: str, root: yaml.Node | None) -> str:
    """One line for each thing that is wrong in a YAML document, with its line and key."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "the file"
        line = _line(root, item["loc"])
        if item["type"] == "extra_forbidden":
            what = "unknown key; remove it or see `factory config schema` for the known ones"
        else:
            what = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}, line {line}: {where}: {what}")
    return "\n".join(lines)

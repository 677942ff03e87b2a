"""YAML files that describe something to a command, read and checked like `factory.yaml`.

work = read(Path("tune.yaml"), Work)
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from factory.config import ConfigError
from factory.config.loading import explain
from factory.config.section import Section

Spec = TypeVar("Spec", bound=Section)


def read(path: Path, kind: type[Spec]) -> Spec:
    """The file as `kind`. Raises `ConfigError` with file, line and key."""
    try:
        text = path.read_text("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping of {', '.join(list(kind.model_fields)[:4])} …")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), root)) from error

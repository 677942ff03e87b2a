"""Caps in the autoscaler's own configuration file, which Ray reads before every round.

    caps = Caps(Path("~/ray_bootstrap_config.yaml").expanduser())
    caps.apply({"spot-small": 2})       # max_workers 2 while it cools down
    caps.apply({})                      # as it was written

What stood there before is kept beside the file, so a restarted monitor can restore it. Writes are
atomic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from factory.cluster.errors import ClusterError
from factory.config import POOL_LABEL

_KEYS = ("min_workers", "max_workers")


class Caps:
    """Caps on node types, in one configuration file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._beside = file.with_name(f"{file.name}.caps.json")

    def state(self) -> dict[str, Any]:
        """What was kept: `original` limits and whatever else the provider remembers."""
        try:
            found = json.loads(self._beside.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def apply(self, caps: Mapping[str, int], remember: Mapping[str, Any] | None = None) -> bool:
        """Cap these node types and free all others; True when the file changed.

        Raises `ClusterError` when the file cannot be read or written.
        """
        try:
            config = yaml.safe_load(self._file.read_text("utf-8"))
            types: dict[str, dict[str, Any]] = config["available_node_types"]
            state = self.state()
            original: dict[str, dict[str, Any]] = state.get("original", {})
            changed = False
            for name, node in types.items():
                before = {key: node.get(key) for key in _KEYS}
                if name in caps:
                    kept = original.setdefault(name, before)
                    limit = caps[name]
                    wanted = {key: min(kept[key] or 0, limit) for key in _KEYS}
                else:
                    wanted = original.pop(name, before)
                if wanted != before:
                    changed = True
                    for key, value in wanted.items():
                        if value is None:
                            node.pop(key, None)
                        else:
                            node[key] = value
            _replace(self._beside, json.dumps({"original": original, **(remember or {})}))
            if changed:
                _replace(self._file, yaml.safe_dump(config, sort_keys=False))
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise ClusterError(
                f"the autoscaler's configuration '{self._file}' cannot be capped: {error}"
            ) from error
        return changed


def capped_pools(file: Path) -> frozenset[str]:
    """The pools of which no more nodes can be had now: all their node types are capped.

    A type counts to the pool of its label, else to the one that has its name. Without a readable
    configuration none is capped.
    """
    capped = Caps(file).state().get("original", {})
    if not capped:
        return frozenset()
    try:
        types = yaml.safe_load(file.read_text("utf-8"))["available_node_types"]
        pools = {name: node.get("labels", {}).get(POOL_LABEL, name) for name, node in types.items()}
        # A type that may have no workers, like the head's, gives none.
        others = {pools[name] for name in types if name not in capped and _may_grow(types[name])}
        return frozenset(pools[name] for name in capped) - others
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return frozenset()


def _may_grow(node: Mapping[str, Any]) -> bool:
    most = node.get("max_workers")
    return most is None or int(most) > 0


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    with suppress(FileNotFoundError):
        draft.chmod(0o600)
    draft.write_text(text, "utf-8")
    draft.replace(path)

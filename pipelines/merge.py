"""Fold an adapter into its base: plain weights that any engine serves at full speed.

    python -m pipelines.merge --adapter helpdesk          # the store's newest of that name
    python -m pipelines.merge --adapter runs/x/adapter --model smollm2-135m

The base is the one the adapter was tuned on, at the same content hash; another one is refused,
and so is one with another chat template. The same pair is merged once. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory import config
from factory.catalog import pull
from factory.catalog.objects import Object, ObjectStore
from factory.config import Settings
from factory.training.chat import template_hash
from factory.training.errors import TrainingError
from factory.training.merge import merge
from pipelines.closing import closed


def merge_named(settings: Settings, name: str, model: str | None) -> tuple[Object, Object]:
    """The merged weights of an adapter and the base they stand on.

    Raises `TrainingError` or `CatalogError`; then nothing is stored.
    """
    store = ObjectStore(settings.objects)
    folder, content, meta = _adapter(store, name)
    facts = _facts(folder)
    label = model or str(facts.get("base_model_name_or_path", ""))
    base = pull.find(settings, label, store) if label in settings.models else None
    if base is None:
        raise TrainingError(
            f"the base '{label}' of adapter '{name}' is not in the object store; pull it "
            f"(`factory models pull {label}`), or name the catalog's entry with --model"
        )
    if facts.get("revision") not in (None, "", base.hash, base.meta.get("revision")):
        raise TrainingError(
            f"adapter '{name}' was tuned on revision {str(facts['revision'])[:16]} of '{label}', "
            f"the store has {base.hash[:16]}; pull the same revision"
        )
    tuned_on = meta.get("template_hash")
    if tuned_on and tuned_on != template_hash(base.path):
        raise TrainingError(
            f"adapter '{name}' was tuned on another chat template than '{label}' has now; answers "
            "would suffer; pull the base it was tuned on"
        )
    return merge(store, base, folder, content), base


def _adapter(store: ObjectStore, name: str) -> tuple[Path, str, dict[str, object]]:
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        whole = store.root in folder.resolve().parents
        found = next(
            (item for item in store.list("adapters") if whole and item.path == folder.resolve()),
            None,
        )
        if found is None:
            return folder.resolve(), _content(folder), {}
    else:
        found = store.find("adapters", name)
    if found is None:
        known = ", ".join(sorted({item.name for item in store.list("adapters")})) or "none"
        raise TrainingError(f"there is no adapter '{name}'; the object store has: {known}")
    return found.path, found.hash, dict(found.meta)


def _facts(folder: Path) -> dict[str, object]:
    try:
        facts = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the adapter in '{folder}': {error}") from error
    return dict(facts)


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise TrainingError(f"cannot read the adapter in '{folder}': {error}") from error
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--adapter", required=True, help="name in the object store, or a folder")
    parser.add_argument("--model", help="catalog entry of the base; the adapter's own if none")
    given = parser.parse_args(argv)

    def job() -> dict[str, Any]:
        merged, base = merge_named(config.load(), given.adapter, given.model)
        return {"model": str(merged.path), "hash": merged.hash, "base": base.name}

    return closed(job)


if __name__ == "__main__":
    raise SystemExit(main())

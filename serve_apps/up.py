"""Deploy, or roll over, the gateway and its engines on a running cluster.

    python -m serve_apps.up --address 127.0.0.1:6379

Prints one JSON line with the `url` when everything answers. Running it again after a promotion or
a rollback replaces what has changed and nothing else. `factory up` calls this.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import httpx
import typer

from factory.catalog.errors import CatalogError
from factory.catalog.objects import Object, ObjectStore
from factory.catalog.pull import find
from factory.cluster.errors import ClusterError
from factory.cluster.ports import free
from factory.config import ConfigError, RegistrySource, Settings, load
from factory.config import find as configuration
from factory.ledger.errors import LedgerError
from factory.ledger.store import Ledger, open_ledger
from serve_apps.serving import Champion, ServingPlan, adapters_in_use, folded, plan

if TYPE_CHECKING:
    from factory.registry.versions import Registry

READY_TIMEOUT_S = 180.0


def main(
    address: Annotated[str, typer.Option(help="GCS address of the running cluster.")],
    config: Annotated[Path | None, typer.Option(help="factory.yaml to serve.")] = None,
    port: Annotated[int | None, typer.Option(help="Port instead of gateway.port.")] = None,
) -> None:
    """Deploy the gateway of one factory.yaml.

    Example: python -m serve_apps.up --address 127.0.0.1:6379
    """
    try:
        config = config or configuration()
        settings = load(config)
        ledger = open_ledger(settings.database_url)
        try:
            planned = resolve(settings, ledger)
        finally:
            ledger.close()
        url = deploy(
            settings,
            planned,
            address,
            config,
            port or settings.gateway.port or free(1, Random())[0],
        )
    except (CatalogError, ClusterError, ConfigError, LedgerError, RuntimeError) as error:
        print(f"error: {str(error).strip()}", file=sys.stderr)
        raise typer.Exit(1) from error
    for note in planned.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps({"url": url, "notes": planned.notes}))


def resolve(settings: Settings, ledger: Ledger) -> ServingPlan:
    """The plan for what is pulled and promoted now; champions are merged here if new.

    Raises `CatalogError` when a model in use is not pulled.
    """
    from factory.embedding import installed
    from factory.registry.versions import Registry

    store = ObjectStore(settings.objects)
    registry = Registry(settings, ledger)
    bases: dict[str, Object] = {}
    for name, model in settings.models.items():
        if isinstance(model.source, RegistrySource):
            promoted = registry.champion(model.source.name)
            if promoted is not None:
                bases[name] = registry.weights(promoted.name, promoted.version)
        elif model.engine != "openai":
            found = find(settings, name, store)
            if found is None:
                raise CatalogError(
                    f"model '{name}' is not pulled; run `factory models pull {name}`"
                )
            bases[name] = found
    merging = folded(settings)
    champions = {
        (model, adapter): _champion(
            store, bases[model], registered, registry, (model, adapter) in merging
        )
        for (model, adapter), registered in adapters_in_use(settings).items()
        if model in bases
    }
    static = installed.make(settings, store, _say) if _encoders(settings) else None
    return plan(settings, bases, champions, static)


def _encoders(settings: Settings) -> bool:
    return any(model.engine == "encoder" for model in settings.models.values())


def _champion(
    store: ObjectStore, base: Object, registered: str, registry: Registry, merging: bool
) -> Champion | None:
    """The promoted version of an adapter, folded into its base where it is served so."""
    from factory.training.merge import merge

    version = registry.champion(registered)
    if version is None:
        return None
    if version.whole:
        return Champion(
            version=version.version, merged=registry.weights(registered, version.version)
        )
    merged = None
    if merging:
        _say(f"folding {registered} version {version.version} into {base.name}")
        merged = merge(store, base, version.path, version.adapter_hash)
    adapter = json.loads((version.path / "adapter_config.json").read_text("utf-8"))
    return Champion(version=version.version, merged=merged, path=version.path, rank=adapter["r"])


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def deploy(
    settings: Settings, planned: ServingPlan, address: str, config: Path | None, port: int
) -> str:
    """Run the application on the cluster; returns the gateway's URL once `/readyz` says yes.

    Raises `RuntimeError` when the cluster or a deployment does not come up.
    """
    import ray
    from ray import serve

    from serve_apps.applications import Applications
    from serve_apps.gateway import gateway_app

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        cores = max([1, *(int(node["Resources"].get("CPU", 0)) for node in alive)])
        host = settings.gateway.host
        serve.start(http_options={"location": "NoServer"})
        gateway = partial(
            gateway_app,
            planned,
            home=settings.home,
            config=config and config.resolve(),
            port=port,
            replicas=settings.gateway.replicas,
        )
        applications = Applications(
            planned,
            cores=cores,
            capacity=ray.cluster_resources(),
            gateways=settings.gateway.replicas,
            say=_say,
        )
        applications.roll_over(gateway)
    finally:
        ray.shutdown()
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    _await_ready(url)
    return url


def _await_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            reply = httpx.get(f"{url}/readyz", timeout=10)
            if reply.status_code == 200:
                return
            last = reply.text[:300]
        except httpx.HTTPError as error:
            last = str(error)
        time.sleep(0.2)
    raise RuntimeError(f"the gateway at {url} is not ready after {READY_TIMEOUT_S:.0f} s: {last}")


if __name__ == "__main__":
    typer.run(main)

"""A cloud on this machine: it starts real Ray nodes, and can fail in the ways real clouds do.

    provider: {type: external, module: benchmarks.fake_cloud.FakeCloud, name: aws, sky: FILE, …}

    sky = Sky(folder / "sky.json")
    sky.set(out=["spot"])             # no spot capacity: launches end with AWS's words
    sky.set(failing=["aws"])          # every call to that cloud's API answers 503
    sky.set(reclaimed=[node_id])      # that machine is gone, without a word

`hybrid(file, …)` takes a configuration of `cluster_configs/` and puts these clouds in the place of
its real ones; `started(…)` runs Ray's own autoscaler on it. The nodes are Ray's (its fake
multi-node provider), and so are scheduler, scaling and everything above.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import SystemRandom
from threading import Lock, Thread
from typing import Any

import psutil
import yaml
from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from factory.cluster import local, meter, ports, processes
from factory.config import Settings

POOLS = """
pools:
  onprem: {capex_usd: 4000, amortize_months: 36, power_w: 100, nodes: 2, cpus: 1,
           residency: [restricted, internal, public]}
  spot: {provider: aws, usd_per_hour: 0.30, spot_policy: spot, max_nodes: 2, cpus: 1}
  ondemand: {provider: aws, usd_per_hour: 1.00, max_nodes: 2, cpus: 1}
"""
"""The node types of `cluster_configs/onprem-aws.yaml` as pools, with nodes of one CPU."""

HEAD_TYPE = "ray.head.default"
"""What Ray's fake provider calls the type of the head."""
_STORE_BYTES = 80_000_000
_STARTING = Lock()
"""Ray hands a node its variables through the environment of this process: one at a time."""
_ENV = {"RAY_FAKE_CLUSTER": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}


class Sky:
    """What the clouds can give now: a file that both sides read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.exists():
            self.set()

    def set(self, **state: list[str]) -> None:
        """The whole state: `out` node types, `failing` clouds, `reclaimed` nodes."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(state), "utf-8")
        draft.replace(self.file)

    def get(self, what: str) -> list[str]:
        """The names under one of these keys."""
        found: list[str] = json.loads(self.file.read_text("utf-8")).get(what, [])
        return found


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on one core; None leaves it alone."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def own_disk() -> Iterator[None]:
    """What this thread starts meanwhile unpacks the code of jobs into a folder of its own.

    Machines share no disk: in Ray's one folder a session a node that joins, or goes, takes away
    what the jobs of all others are running from.
    """
    before = ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME
    ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"{before}-{SystemRandom().randrange(2**32):08x}"
    try:
        yield
    finally:
        ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = before


class FakeCloud(FakeMultiNodeProvider):  # type: ignore[misc]
    """One cloud. Its nodes are raylets on this machine."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._name: str = provider_config["name"]
        self._sky = Sky(Path(provider_config["sky"]))
        if not provider_config.get("head"):
            self._nodes.clear()

    def _next_hex_node_id(self) -> str:
        """Node ids that two clouds do not share."""
        self._next_node_id += 1
        return f"{zlib.crc32(self._name.encode()):08x}" * 6 + f"{self._next_node_id:08x}"

    def _answer(self) -> None:
        if self._name in self._sky.get("failing"):
            raise ConnectionError(f"503 Service Unavailable: the API of {self._name}")

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The machines of now; those that were reclaimed end here."""
        self._answer()
        with self.lock:
            for node_id in set(self._sky.get("reclaimed")) & set(self._nodes):
                gone = self._nodes.pop(node_id)
                gone["node"].kill_all_processes(check_alive=False, allow_graceful=False)
        return list(super().non_terminated_nodes(tag_filters))

    def is_running(self, node_id: str) -> bool:
        """Whether the machine runs."""
        self._answer()
        return bool(super().is_running(node_id))

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Start machines, or say no as a cloud does."""
        self._answer()
        if tags[TAG_RAY_USER_NODE_TYPE] in self._sky.get("out"):
            raise RuntimeError(
                "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances "
                "operation: There is no Spot capacity available that matches your request."
            )
        with _STARTING, own_disk(), on_core(self.provider_config.get("core")):
            super().create_node_with_resources_and_labels(
                node_config, tags, count, resources, labels
            )

    def terminate_node(self, node_id: str) -> None:
        """End a machine."""
        self._answer()
        super().terminate_node(node_id)


def hybrid(
    file: Path,
    sky: Sky,
    gcs: str,
    *,
    own: Path,
    ledger: str,
    types: Mapping[str, Mapping[str, Any]],
    through: bool = True,
    cool_down_s: float = 60,
    cores: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The configuration in `file` with fake clouds in the place of its providers.

    `own` is where the result will stand, since a stock-out is capped there; `ledger` the database
    that keeps what was in stock. Of the node types those in `types` stay, with what it gives for
    them (limits, resources); a node has one CPU otherwise.
    Without `through`, Ray gets the fake cloud itself instead of `HybridNodeProvider`. `cores` keeps
    the machines of a provider to one core, so that they disturb others no more than real ones do.
    """
    config: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    config["auth"].pop("ssh_private_key")  # nobody goes anywhere by SSH
    provider, head = config["provider"], config["head_node_type"]
    home = config["available_node_types"][head]["node_config"]["provider"]
    switched_off = {"disable_node_updaters": True, "disable_launch_config_check": True}

    def cloud(name: str) -> dict[str, Any]:
        return {
            "type": "external",
            "module": f"{__name__}.{FakeCloud.__name__}",
            "name": name,
            "head": name == home,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "gcs_address": gcs,
            "sky": str(sky.file),
            "core": (cores or {}).get(name),
        }

    if through:
        config["provider"] = (
            provider
            | switched_off
            | {
                "config_file": str(own),
                "ledger": ledger,
                "cool_down_s": cool_down_s,
                "providers": {name: cloud(name) for name in provider["providers"]},
            }
        )
    else:
        config["provider"] = cloud(home) | switched_off
    available = {
        HEAD_TYPE: config["available_node_types"][head] | {"resources": {"CPU": 0}},
    }
    for name, changes in types.items():
        node = config["available_node_types"][name]
        size = {"CPU": 1, "object_store_memory": _STORE_BYTES}
        node = node | {"resources": size} | dict(changes)
        if not through:
            node["node_config"].pop("provider")
        available[name] = node
    config |= {"head_node_type": HEAD_TYPE, "available_node_types": available}
    return config


def count_often(settings: Settings, cluster: local.Cluster, every_s: float) -> None:
    """Count node-hours this often, not once a minute, until the cluster is gone."""
    for process in processes.family(cluster.pid, cluster.started, cluster.id):
        if meter.__name__ in process.cmdline():
            process.kill()
            process.wait()
    often = partial(meter.watch, settings, interval_s=every_s)
    Thread(target=often, daemon=True).start()


@contextmanager
def started(
    settings: Settings,
    sky: Sky,
    *,
    config: Path | None = None,
    core: int | None = None,
    variables: Mapping[str, str] | None = None,
    **changes: Any,
) -> Iterator[local.Cluster]:
    """A head under `settings.home` with Ray's autoscaler; `changes` are those of `hybrid`.

    `config` is the factory.yaml of its processes, `core` the only one that the head uses,
    `variables` what its environment has besides.
    Raises `ClusterError` when it does not come up.
    """
    (port,) = ports.free(1, SystemRandom())
    own = settings.home / "cluster.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    nodes = hybrid(
        sky=sky, gcs=f"127.0.0.1:{port}", own=own, ledger=settings.database_url, **changes
    )
    own.write_text(yaml.safe_dump(nodes, sort_keys=False), "utf-8")
    environment = _ENV | dict(variables or {})
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with on_core(core):
            cluster = local.start(settings, config=config, cpus=0, autoscaling=own, port=port)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield cluster
    finally:
        # Machines of a cloud do not end with the head, and a head waits for what it has lost.
        for process in processes.family(cluster.pid, cluster.started, cluster.id):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        local.stop(settings)

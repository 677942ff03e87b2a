"""A Ray NodeProvider over several: hosts of your own by SSH, AWS, GCP, in one cluster.

    provider:
      type: external
      module: factory.cluster.clouds.provider.HybridNodeProvider
      ledger: sqlite:////opt/factory/.factory/factory.db      # optional: what was in stock, when
      providers:
        onprem: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
        aws: {type: aws, region: us-east-2}
    available_node_types:
      spot: {node_config: {provider: aws, InstanceType: …}, …}

Each node type names its provider; Ray's own providers do the work, loaded when first used. What
this adds: a type whose launch fails cools down and is capped in the autoscaler's file, so that Ray
goes to the next (`stock`, `caps`); a cloud whose API fails keeps its last known nodes and does not
stop the others; a node that was terminated and is listed again is ended again, never counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from factory.cluster.clouds.caps import Caps
from factory.cluster.clouds.price import told
from factory.cluster.clouds.stock import Shelf, classify
from factory.cluster.clouds.stockroom import Record
from factory.cluster.errors import ClusterError
from factory.config import ZONE_LABEL

_log = logging.getLogger(__name__)
_CONFIG_FILE = "~/ray_bootstrap_config.yaml"
"""Where Ray's cluster launcher puts the configuration on the head."""


class HybridNodeProvider(NodeProvider):  # type: ignore[misc]
    """Several node providers as one."""

    def __init__(
        self,
        provider_config: dict[str, Any],
        cluster_name: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(provider_config, cluster_name)
        named = provider_config.get("providers")
        if not isinstance(named, Mapping) or not named:
            raise ClusterError("provider.providers names no provider; give at least one")
        self._configs: dict[str, dict[str, Any]] = {
            name: {**config, "cluster_name": cluster_name} for name, config in named.items()
        }
        self._children: dict[str, NodeProvider] = {}
        self._clock = clock
        self._lock = RLock()
        self._owner: dict[str, str] = {}
        self._known: dict[str, list[str]] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._ended: dict[str, float] = {}
        """Nodes that we ended, and when."""
        self._caps = Caps(Path(provider_config.get("config_file", _CONFIG_FILE)).expanduser())
        self._shelf = Shelf(
            float(provider_config.get("cool_down_s", 60)),
            float(provider_config.get("longest_cool_down_s", 1800)),
        )
        try:
            self._shelf = self._shelf.with_failing(self._caps.state().get("failing", {}))
        except (KeyError, TypeError, AttributeError):
            _log.warning("what was remembered of stock-outs cannot be read; starting afresh")
        self._capped: frozenset[str] = frozenset(self._caps.state().get("original", {}))
        self._record = Record(provider_config.get("ledger"))

    # What there is.

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The nodes of all providers that carry these tags."""
        found: list[str] = []
        with self._lock:
            for name in self._configs:
                found += self._list(name)
            self._review()
        wanted = tag_filters.items()
        return [node for node in found if wanted <= self.node_tags(node).items()]

    def _list(self, name: str) -> list[str]:
        try:
            listed = list(self._child(name).non_terminated_nodes({}))
            for node in listed:
                self._tags[node] = dict(self._child(name).node_tags(node))
        except Exception as error:  # whatever a cloud's library raises
            _log.warning("provider %s does not list its nodes: %s", name, error)
            return self._known.get(name, [])
        alive = []
        for node in listed:
            self._owner[node] = name
            if node in self._ended and self._came_back(name, node):
                continue
            alive.append(node)
        for node in set(self._known.get(name, [])) - set(listed):
            self._ended.pop(node, None)
        self._known[name] = alive
        return alive

    def _came_back(self, name: str, node: str) -> bool:
        """A node that we ended is listed still: end it again; True while it must not count.

        Clouds list an ending node for a while, and hosts of your own are given out again.
        """
        if self._configs[name].get("type") == "local":
            self._ended.pop(node, None)
            return False
        if self._clock() - self._ended[node] > 120:
            _log.warning("node %s of %s was ended and is back; ending it again", node, name)
            self._ended[node] = self._clock()
            try:
                self._child(name).terminate_node(node)
            except Exception as error:  # asked again in two minutes
                _log.warning("node %s of %s cannot be ended: %s", node, name, error)
        return True

    def is_running(self, node_id: str) -> bool:
        """Whether the node runs, as far as its provider says."""
        return bool(self._ask(node_id, "is_running", False))

    def is_terminated(self, node_id: str) -> bool:
        """Whether the node is gone."""
        return bool(self._ask(node_id, "is_terminated", node_id not in self._owner))

    def node_tags(self, node_id: str) -> dict[str, str]:
        """The node's tags, as last listed."""
        return dict(self._tags.get(node_id, {}))

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Add tags to a node."""
        self._owning(node_id).set_node_tags(node_id, tags)
        self._tags.setdefault(node_id, {}).update(tags)

    def external_ip(self, node_id: str) -> str | None:
        """Address from outside."""
        found: str | None = self._owning(node_id).external_ip(node_id)
        return found

    def internal_ip(self, node_id: str) -> str | None:
        """Address inside the cluster."""
        found: str | None = self._owning(node_id).internal_ip(node_id)
        return found

    def get_command_runner(self, log_prefix: str, node_id: str, *rest: Any, **named: Any) -> Any:
        """How to run commands there: that of the node's own provider."""
        return self._owning(node_id).get_command_runner(log_prefix, node_id, *rest, **named)

    # What comes and goes.

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> Any:
        """Launch nodes. A failure cools their type down, and is told to Ray."""
        node_type = tags.get(TAG_RAY_USER_NODE_TYPE, "")
        name, own = self._split(node_config)
        with self._lock:
            if node_type in self._shelf.cooling(self._clock()):
                raise NodeLaunchException("cooling-down", f"{node_type} cools down", None)
        try:
            made = self._child(name).create_node_with_resources_and_labels(
                own, tags, count, resources, labels
            )
        except Exception as error:  # whatever a cloud's library raises
            trouble = classify(error)
            if trouble == "stock-out":
                self._record.saw(labels, False, "stock-out", self._clock())
            with self._lock:
                self._shelf = self._shelf.failed(node_type, trouble, self._clock())
                self._review()
            if isinstance(error, NodeLaunchException):
                raise
            raise NodeLaunchException(trouble, str(error)[:200], None) from error
        with self._lock:
            self._shelf = self._shelf.launched(node_type)
            # Known at once: should the API fail now, Ray would wait for a node that is there.
            self._list(name)
        self._tell(name, own, labels)
        return made

    def _tell(self, name: str, node_config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """A spot node could be had: into the record, with the price where the cloud says it."""
        if not self._record.takes(labels):
            return
        now = self._clock()
        zone, at = labels.get(ZONE_LABEL), datetime.fromtimestamp(now, UTC)
        price = told(self._child(name), node_config, zone, at)
        self._record.saw(labels, True, "launched", now, price)

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
        """Launch nodes of which nothing else is known."""
        return self.create_node_with_resources_and_labels(node_config, tags, count, {}, {})

    def terminate_node(self, node_id: str) -> Any:
        """End a node; ending one that is gone is no error."""
        owner = self._owner.get(node_id)
        if owner is None:
            return None
        self._ended[node_id] = self._clock()
        return self._child(owner).terminate_node(node_id)

    def terminate_nodes(self, node_ids: list[str]) -> Any:
        """End several, each in its cloud; what one cloud refuses is raised after all were asked."""
        refused: list[str] = []
        for node_id in node_ids:
            try:
                self.terminate_node(node_id)
            except Exception as error:  # whatever a cloud's library raises
                refused.append(f"{node_id}: {error}")
        if refused:
            raise ClusterError(f"nodes cannot be ended: {'; '.join(refused)}")
        return None

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing is made up front: networks, roles and keys are named in the configuration."""
        return cluster_config

    def _review(self) -> None:
        """Cap what cools down at what it has, and free what has cooled."""
        cooling = self._shelf.cooling(self._clock())
        if cooling == self._capped:
            return
        counts = dict.fromkeys(cooling, 0)
        for nodes in self._known.values():
            for node in nodes:
                tags = self._tags.get(node, {})
                node_type = tags.get(TAG_RAY_USER_NODE_TYPE, "")
                if node_type in counts and tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_WORKER:
                    counts[node_type] += 1
        try:
            self._caps.apply(counts, {"failing": self._shelf.as_dict()})
        except ClusterError as error:
            _log.error("%s", error)
            return
        for name in cooling - self._capped:
            failing = self._shelf.failing[name]
            _log.warning(
                "%s: %s, failure %d; cooling down for %.0f s",
                name,
                failing.trouble,
                failing.failures,
                failing.until - self._clock(),
            )
        for name in self._capped - cooling:
            _log.warning("%s has cooled down; it may be asked for again", name)
        self._capped = cooling

    def _split(self, node_config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        own = dict(node_config)
        name = own.pop("provider", None)
        if name not in self._configs:
            raise ClusterError(
                f"a node type's node_config.provider is '{name}', which is not under "
                f"provider.providers ({', '.join(self._configs)})"
            )
        return name, own

    def _child(self, name: str) -> NodeProvider:
        with self._lock:
            if name not in self._children:
                from ray.autoscaler._private.providers import _NODE_PROVIDERS

                config = self._configs[name]
                made = _NODE_PROVIDERS[config["type"]](config)
                self._children[name] = made(config, self.cluster_name)
            return self._children[name]

    def _owning(self, node_id: str) -> NodeProvider:
        owner = self._owner.get(node_id)
        if owner is None:
            raise ClusterError(f"node {node_id} belongs to no provider")
        return self._child(owner)

    def _ask(self, node_id: str, what: str, otherwise: bool) -> Any:
        try:
            return getattr(self._owning(node_id), what)(node_id)
        except Exception as error:  # a cloud that does not answer is no proof of anything
            _log.warning("node %s: %s is not known: %s", node_id, what, error)
            return otherwise

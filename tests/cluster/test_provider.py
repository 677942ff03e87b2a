"""Several clouds as one provider: stock-outs, APIs that fail for ever, nodes back from the dead."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider

from factory.cluster.clouds.caps import Caps, capped_pools
from factory.cluster.clouds.price import dearest, told
from factory.cluster.clouds.provider import HybridNodeProvider
from factory.cluster.clouds.stock import Shelf, classify
from factory.cluster.errors import ClusterError
from factory.ledger.store import open_ledger
from factory.ledger.zones import observations


class Cloud(NodeProvider):
    """A cloud's API: it can be out of stock, fail, and list what was ended."""

    clouds: ClassVar[dict[str, Cloud]] = {}

    def __init__(self, config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(config, cluster_name)
        self.error: Exception | None = None
        self.broken = False
        self.lingers = False
        self.nodes: dict[str, dict[str, str]] = {}
        self.ended: list[str] = []
        self.clouds[config["name"]] = self

    def _answer(self) -> None:
        if self.broken:
            raise ConnectionError("503 Service Unavailable")

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        self._answer()
        return list(self.nodes)

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.nodes[node_id]

    def is_running(self, node_id: str) -> bool:
        self._answer()
        return node_id in self.nodes

    def create_node_with_resources_and_labels(
        self, config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        self._answer()
        if self.error is not None:
            raise self.error
        assert "provider" not in config
        for _ in range(count):
            self.nodes[f"{self.provider_config['name']}-{len(self.nodes)}"] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        self._answer()
        self.ended.append(node_id)
        if not self.lingers:
            self.nodes.pop(node_id)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    types = {"spot": {"min_workers": 1, "max_workers": 4}, "ondemand": {"max_workers": 2}}
    path.write_text(yaml.safe_dump({"max_workers": 6, "available_node_types": types}))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(file: Path, clock: Clock) -> HybridNodeProvider:
    return provider(file, clock)


def provider(file: Path, clock: Clock, **more: Any) -> HybridNodeProvider:
    sys.modules.setdefault("cloud_for_tests", sys.modules[__name__])
    cloud = {"type": "external", "module": "cloud_for_tests.Cloud"}
    return HybridNodeProvider(
        {
            "config_file": str(file),
            "providers": {"aws": {**cloud, "name": "aws"}, "home": {**cloud, "name": "home"}},
            **more,
        },
        "test",
        clock,
    )


def launch(made: HybridNodeProvider, node_type: str, cloud: str = "aws", count: int = 1) -> None:
    tags = {"ray-user-node-type": node_type, "ray-node-type": "worker"}
    made.create_node_with_resources_and_labels({"provider": cloud}, tags, count, {}, {})


def limits(file: Path, node_type: str) -> tuple[int | None, int | None]:
    node = yaml.safe_load(file.read_text())["available_node_types"][node_type]
    return node.get("min_workers"), node.get("max_workers")


def test_a_stock_out_caps_the_type_at_what_it_has_and_frees_it_later(
    made: HybridNodeProvider, file: Path, clock: Clock
) -> None:
    launch(made, "spot", count=2)
    assert len(made.non_terminated_nodes({"ray-user-node-type": "spot"})) == 2
    Cloud.clouds["aws"].error = RuntimeError("InsufficientInstanceCapacity: no spot in us-east-2a")
    with pytest.raises(NodeLaunchException, match="InsufficientInstanceCapacity"):
        launch(made, "spot")
    assert limits(file, "spot") == (1, 2)
    assert limits(file, "ondemand") == (None, 2)
    Cloud.clouds["aws"].error = None
    with pytest.raises(NodeLaunchException, match="cools down"):
        launch(made, "spot")
    clock.now += 61
    made.non_terminated_nodes({})
    assert limits(file, "spot") == (1, 4)
    launch(made, "spot")
    assert len(made.non_terminated_nodes({})) == 3


def test_what_was_capped_is_restored_after_a_restart_of_the_monitor(
    made: HybridNodeProvider, file: Path, clock: Clock
) -> None:
    made.non_terminated_nodes({})
    launch(made, "spot")
    Cloud.clouds["aws"].error = RuntimeError("capacity: does not have enough resources available")
    with pytest.raises(NodeLaunchException):
        launch(made, "spot")
    again = provider(file, clock)
    with pytest.raises(NodeLaunchException, match="cools down"):
        launch(again, "spot")
    clock.now += 61
    again.non_terminated_nodes({})
    assert limits(file, "spot") == (1, 4)


def test_a_cloud_that_fails_for_ever_does_not_stop_the_others(
    made: HybridNodeProvider, file: Path, clock: Clock
) -> None:
    launch(made, "spot")
    assert made.non_terminated_nodes({}) == ["aws-0"]
    Cloud.clouds["aws"].broken = True
    for _ in range(20):
        with pytest.raises(NodeLaunchException):
            launch(made, "spot")
        launch(made, "own", "home")
        assert "aws-0" in made.non_terminated_nodes({})  # its nodes are kept, not given up
        assert not made.is_running("aws-0")
        clock.now += 600
    assert len(made.non_terminated_nodes({})) == 21
    with pytest.raises(ClusterError, match="aws-0: 503"):
        made.terminate_nodes(["aws-0", "home-0"])
    assert Cloud.clouds["home"].ended == ["home-0"]


def test_a_node_is_known_though_the_api_fails_right_after_its_launch(
    made: HybridNodeProvider,
) -> None:
    launch(made, "spot")
    Cloud.clouds["aws"].broken = True
    assert made.non_terminated_nodes({"ray-user-node-type": "spot"}) == ["aws-0"]


def test_a_node_back_from_the_dead_is_ended_again_and_never_counted(
    made: HybridNodeProvider, clock: Clock
) -> None:
    launch(made, "spot")
    made.non_terminated_nodes({})
    Cloud.clouds["aws"].lingers = True
    made.terminate_node("aws-0")
    assert made.non_terminated_nodes({}) == []
    clock.now += 121
    assert made.non_terminated_nodes({}) == []
    assert Cloud.clouds["aws"].ended == ["aws-0", "aws-0"]
    assert made.terminate_node("never-seen") is None


def test_a_provider_without_a_name_is_one_sentence(made: HybridNodeProvider) -> None:
    with pytest.raises(ClusterError, match=r"'azure', which is not under .* \(aws, home\)"):
        launch(made, "spot", "azure")
    with pytest.raises(ClusterError, match="names no provider"):
        HybridNodeProvider({}, "test")


def test_cool_downs_double_are_bounded_and_end_with_a_launch() -> None:
    shelf, now, waits = Shelf(60, 200), 0.0, []
    for _ in range(4):
        shelf = shelf.failed("spot", "stock-out", now)
        assert shelf.failed("spot", "error", now + 1) is shelf
        waits.append(shelf.failing["spot"].until - now)
        now = shelf.failing["spot"].until
        assert shelf.cooling(now) == frozenset()
    assert waits == [60, 120, 200, 200]
    assert shelf.cooling(now - 201) == frozenset()  # the clock was set back
    assert shelf.launched("spot").failing == {}
    assert Shelf(60, 200).with_failing(shelf.as_dict()) == shelf


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "stock-out"),
        ("An error occurred (MaxSpotInstanceCountExceeded)", "quota"),
        ("RequestLimitExceeded", "throttled"),
        ("502 Bad Gateway", "error"),
    ],
)
def test_a_clouds_no_is_understood(words: str, kind: str) -> None:
    error = NodeLaunchException("x", "launch failed", None)
    error.__cause__ = RuntimeError(words)
    assert classify(error) == kind


SPOT = {
    "factory/pool": "spot",
    "ray.io/market-type": "spot",
    "ray.io/availability-zone": "us-east-2a",
}


def test_what_spot_zones_had_is_recorded_with_the_price(file: Path, clock: Clock) -> None:
    url = f"sqlite:///{file.with_name('factory.db')}"
    made = provider(file, clock, ledger=url)
    made.non_terminated_nodes({})
    asked: list[dict[str, Any]] = []

    def history(**query: Any) -> dict[str, Any]:
        asked.append(query)
        row = {"AvailabilityZone": "us-east-2a", "InstanceType": "g5.xlarge"}
        at = query["StartTime"]
        old = {**row, "SpotPrice": "0.900000", "Timestamp": at - timedelta(hours=9)}
        return {"SpotPriceHistory": [{**row, "SpotPrice": "0.412300", "Timestamp": at}, old]}

    client = SimpleNamespace(describe_spot_price_history=history)
    cloud = Cloud.clouds["aws"]
    cloud.ec2 = SimpleNamespace(meta=SimpleNamespace(client=client))  # type: ignore[attr-defined]

    def ask(**labels: str) -> None:
        tags = {"ray-user-node-type": "spot", "ray-node-type": "worker"}
        config = {"provider": "aws", "InstanceType": "g5.xlarge"}
        made.create_node_with_resources_and_labels(config, tags, 1, {}, SPOT | labels)

    ask()
    ask(**{"ray.io/market-type": "on-demand"})
    clock.now += 10
    cloud.error = RuntimeError("InsufficientInstanceCapacity: no spot in us-east-2a")
    with pytest.raises(NodeLaunchException):
        ask()
    clock.now += 61
    made.non_terminated_nodes({})
    cloud.error = None
    client.describe_spot_price_history = lambda **_: 1 / 0  # AWS has no answer: it starts anyway
    ask()
    ledger = open_ledger(url)
    found = [(each.source, each.nusd_per_hour) for each in observations(ledger, "spot")]
    ledger.close()
    assert found == [("launched", 412_300_000), ("stock-out", None), ("launched", None)]
    (query,) = asked
    assert (query["AvailabilityZone"], query["InstanceTypes"]) == ("us-east-2a", ["g5.xlarge"])


def test_a_price_that_makes_no_sense_is_no_price() -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)

    def row(zone: str, price: str) -> dict[str, Any]:
        return {"AvailabilityZone": zone, "SpotPrice": price, "Timestamp": at}

    assert dearest([]) is None
    assert dearest([row("a", "-1"), row("a", "n/a"), row("b", "9000")]) is None
    assert dearest([row("a", "0.4"), row("b", "0.5")]) == 500_000_000
    assert told(object(), {"InstanceType": "x"}, None, at) is None


def test_what_is_capped_is_told_by_pool(made: HybridNodeProvider, file: Path, clock: Clock) -> None:
    assert capped_pools(file) == frozenset()
    config = yaml.safe_load(file.read_text())
    types = config["available_node_types"]
    types["spot"]["labels"] = {"factory/pool": "cheap"}
    types["head"] = {"max_workers": 0, "labels": {"factory/pool": "cheap"}}
    types["spot-b"] = {"max_workers": 1, "labels": {"factory/pool": "cheap"}}
    file.write_text(yaml.safe_dump(config))
    made.non_terminated_nodes({})
    Cloud.clouds["aws"].broken = True
    for node_type in ("spot", "ondemand", "spot-b"):
        assert "cheap" not in capped_pools(file)  # one of its types is not capped
        with pytest.raises(NodeLaunchException):
            launch(made, node_type)
    assert capped_pools(file) == {"cheap", "ondemand"}
    clock.now += 61
    made.non_terminated_nodes({})
    assert capped_pools(file) == frozenset()
    assert capped_pools(file.with_name("absent.yaml")) == frozenset()


def test_a_configuration_that_cannot_be_capped_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be capped"):
        Caps(tmp_path / "absent.yaml").apply({"spot": 0})
    (tmp_path / "bad.yaml").write_text("[1, 2]")
    with pytest.raises(ClusterError, match="cannot be capped"):
        Caps(tmp_path / "bad.yaml").apply({"spot": 0})

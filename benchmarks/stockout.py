"""Seconds until work runs elsewhere when spot is out, and until it is back on spot.

    found = measured(home, cool_down_s=60)       # with HybridNodeProvider
    found |= reference(home, patience_s=60)      # Ray and the same cloud without it

`cluster_configs/onprem-aws.yaml` under Ray's autoscaler, with a fake cloud in the place of AWS.
The work is an actor of one CPU; what is measured runs from its request to its first answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.fake_cloud import POOLS, Sky, started
from factory.cluster import local, processes
from factory.config import MARKET_LABEL, Settings, parse

CLUSTER = Path(__file__).parents[1] / "cluster_configs" / "onprem-aws.yaml"
CLOUD = ("spot", "on-demand")
"""Spot, or what stands in for it."""
PATIENCE_S = 180.0
_HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that hangs is declared dead after some ten seconds, not after a minute."""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def settings_at(home: Path) -> Settings:
    """Pools, and no models."""
    document = yaml.safe_load(POOLS) | {"models": {}, "teams": {}, "endpoints": {}}
    return parse(json.dumps(document), "the benchmark", home, {"FACTORY_HOME": str(home)})


@contextmanager
def joined(cluster: local.Cluster) -> Iterator[Any]:
    """Ray, in this process, as a driver of the cluster."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield ray
    finally:
        ray.shutdown()


class Work:
    """Holds a CPU and says on what it runs."""

    def market(self) -> str:
        """The market of its node."""
        import ray

        return str(ray.get_runtime_context().get_node_labels()[MARKET_LABEL])

    def node(self) -> str:
        """Its node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


def ask(ray: Any, *markets: str) -> Any:
    """Work for any of these markets; the handle, at once."""
    selector = {MARKET_LABEL: f"in({','.join(markets)})"}
    return ray.remote(num_cpus=1, label_selector=selector)(Work).remote()


def answer(ray: Any, work: Any, begun: float, patience_s: float = PATIENCE_S) -> tuple[str, float]:
    """On what it runs, and after how many seconds. Raises `RuntimeError` when it does not run."""
    try:
        market = str(ray.get(work.market.remote(), timeout=patience_s))
    except ray.exceptions.GetTimeoutError as error:
        raise RuntimeError(f"the work does not run within {patience_s:.0f} s") from error
    return market, time.monotonic() - begun


def expect(found: str, wanted: str) -> None:
    """Raises `RuntimeError` when the work is in the wrong place."""
    if found != wanted:
        raise RuntimeError(f"the work runs on {found} and should on {wanted}")


def measured(home: Path, cool_down_s: float) -> dict[str, Any]:
    """Fallback, return, and a cloud whose API fails for ever, with the factory's provider."""
    sky = Sky(home / "sky.json")
    sky.set(out=["spot"])
    types = {
        "spot": {"max_workers": 2, "priority": 2},
        "ondemand": {"max_workers": 2, "priority": 1},
        "onprem": {"min_workers": 0, "max_workers": 1},
    }
    with (
        started(
            settings_at(home),
            sky,
            variables=_HEALTH,
            file=CLUSTER,
            types=types,
            cool_down_s=cool_down_s,
        ) as head,
        joined(head) as ray,
    ):
        say("spot is out of stock; work for spot or on-demand arrives")
        begun = time.monotonic()
        first = ask(ray, *CLOUD)
        market, fallback = answer(ray, first, begun)
        expect(market, "on-demand")
        cooled = begun + cool_down_s
        say(f"it runs on-demand after {fallback:.1f} s; spot is back in stock, work for it arrives")
        sky.set()
        begun = time.monotonic()
        second = ask(ray, "spot")
        market, back = answer(ray, second, begun, PATIENCE_S + cool_down_s)
        expect(market, "spot")
        late = time.monotonic() - max(cooled, begun)
        say(f"it runs on spot after {back:.1f} s, {late:.1f} s after the cool-down")
        undead = _undead(ray, head, second)
        second = ask(ray, "spot")
        begun = time.monotonic()
        expect(answer(ray, second, begun)[0], "spot")
        ray.kill(second)
        sky.set(failing=["aws"])
        say("every call to the cloud's API answers 503 from now on; more work arrives")
        begun = time.monotonic()
        third = ask(ray, *CLOUD)
        expect(answer(ray, third, begun)[0], "spot")  # its nodes are kept, and one has a free CPU
        begun = time.monotonic()
        market, home_s = answer(ray, ask(ray, *CLOUD, "on-prem"), begun)
        expect(market, "on-prem")
        say(f"it runs at home after {home_s:.1f} s; what ran in the cloud still answers")
        expect(answer(ray, first, begun)[0], "on-demand")
    return {
        "fallback_s": round(fallback, 1),
        "return_s": round(back, 1),
        "return_after_cool_down_s": round(late, 1),
        "api_error_fallback_s": round(home_s, 1),
        "cool_down_s": cool_down_s,
        **undead,
    }


def _undead(ray: Any, head: local.Cluster, work: Any) -> dict[str, Any]:
    """Freeze the node of `work` until Ray has declared it dead, and let it go on.

    Raises `RuntimeError` when it counts as a node again, or its machine is kept.
    """
    node = ray.get(work.node.remote(), timeout=PATIENCE_S)
    raylet = next(
        process
        for process in processes.family(head.pid, head.started, head.id)
        if f"--node_id={node}" in process.cmdline()
    )

    def lives() -> bool:
        return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())

    raylet.suspend()
    say("the machine of that work hangs")
    begun = time.monotonic()
    while lives():
        if time.monotonic() - begun > PATIENCE_S:
            raise RuntimeError("a node that hangs is not declared dead")
        time.sleep(0.1)
    dead = time.monotonic() - begun
    raylet.resume()
    begun = time.monotonic()
    while raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE:
        if lives() or time.monotonic() - begun > PATIENCE_S:
            raise RuntimeError("a node that was declared dead is used again")
        time.sleep(0.1)
    gone = time.monotonic() - begun
    say(f"declared dead after {dead:.1f} s; it came back, and was ended {gone:.1f} s later")
    return {"declared_dead_s": round(dead, 1), "undead_ended_s": round(gone, 1)}


def reference(home: Path, patience_s: float) -> dict[str, float | None]:
    """The same fallback with Ray alone; None when it has not happened within `patience_s`."""
    import ray

    sky = Sky(home / "sky.json")
    sky.set(out=["spot"])
    types = {"spot": {"max_workers": 1, "priority": 1}, "ondemand": {"max_workers": 1}}
    with (
        started(settings_at(home), sky, file=CLUSTER, types=types, through=False) as head,
        joined(head),
    ):
        say(f"the same with Ray alone, for at most {patience_s:.0f} s")
        begun = time.monotonic()
        try:
            _, seconds = answer(ray, ask(ray, *CLOUD), begun, patience_s)
        except RuntimeError:
            say("it does not run")
            return {"ray_default_fallback_s": None, "ray_default_limit_s": patience_s}
    return {"ray_default_fallback_s": round(seconds, 1), "ray_default_limit_s": patience_s}

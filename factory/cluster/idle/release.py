"""Ends idle things from inside the cluster: a process of its own, since it joins Ray.

    echo '[{"key": "actor 1a", "actor": "index", "namespace": "x"}]' |
        python -m factory.cluster.idle.release --address 127.0.0.1:6379

Its last line is a JSON object: why each thing that could not be ended was not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from factory.cluster import processes

WAIT_S = 15.0
"""Seconds that a driver has to end after SIGTERM."""


def end_driver(pid: int, before_ms: int) -> str:
    """SIGTERM to a driver on this node; why it did not end, or nothing.

    A process that began after the session did is another one with the same number.
    """
    started = processes.started(pid)
    if started is None:
        return ""
    if started * 1000 > before_ms + 5_000:
        return f"process {pid} is another one by now"
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return f"process {pid} belongs to another user"
    # One that has ended and was not collected by its parent has ended.
    until = time.monotonic() + WAIT_S
    while processes.is_same(pid, started):
        if time.monotonic() > until:
            return f"process {pid} does not end on SIGTERM"
        time.sleep(0.1)
    return ""


def release(thing: Mapping[str, Any]) -> str:
    """End one thing; why it was not ended, or nothing."""
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if "actor" in thing:
        try:
            ray.kill(ray.get_actor(thing["actor"], namespace=thing["namespace"]))
        except ValueError:
            return ""  # it is gone
        return ""
    if "group" in thing:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(thing["group"])))
        return ""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    node = next((each for each in nodes if each["NodeManagerAddress"] == thing["ip"]), None)
    if node is None:
        return f"its node {thing['ip']} is not in the cluster"
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(end_driver).options(num_cpus=0, scheduling_strategy=there)
    return str(ray.get(task.remote(thing["driver"], thing["before_ms"]), timeout=WAIT_S + 30))


def main() -> None:
    """Read what to end from standard input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", required=True)
    address = parser.parse_args().address
    things = json.load(sys.stdin)
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    failed = {}
    for thing in things:
        try:
            why = release(thing)
        except Exception as error:  # one that fails must not keep the others
            why = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        if why:
            failed[thing["key"]] = why
    ray.shutdown()
    print(json.dumps(failed), flush=True)


if __name__ == "__main__":
    main()

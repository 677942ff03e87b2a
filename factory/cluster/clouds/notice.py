"""From a cloud's word that a machine will be taken away to Ray's draining of the node.

    python -m factory.cluster.clouds.notice --cloud aws --address 10.0.0.1:6379   # on spot nodes

AWS answers `spot/instance-action` with the action and its time, GCP `instance/preempted` with TRUE
and gives 30 s. Ray then stops scheduling on the node, and Ray Train's workers learn of it through
`get_preemption_info()`, so they save their work before the machine goes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import httpx

from factory.cluster.errors import ClusterError

Cloud = Literal["aws", "gcp"]
ADDRESS: dict[Cloud, str] = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
}
GCP_NOTICE_S = 30.0
"""Seconds between GCP's notice and the end (cloud.google.com, "Spot VMs", 2026)."""
EVERY_S = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine will be taken away."""

    action: str
    left_s: float
    """Seconds that are left, never negative."""


def read_aws(client: httpx.Client, now: datetime) -> Notice | None:
    """What AWS's instance metadata service (IMDSv2) says; None while nothing is announced.

    Raises `httpx.HTTPError` when it does not answer, `ClusterError` for an answer of no sense.
    """
    token = client.put("/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    token.raise_for_status()
    answer = client.get(
        "/latest/meta-data/spot/instance-action",
        headers={"X-aws-ec2-metadata-token": token.text},
    )
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    try:
        said = json.loads(answer.text)
        at = datetime.fromisoformat(str(said["time"]).replace("Z", "+00:00"))
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return Notice(str(said["action"]), max(0.0, (at - now).total_seconds()))
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"AWS's notice makes no sense: {answer.text[:200]!r}") from error


def read_gcp(client: httpx.Client, now: datetime) -> Notice | None:
    """What GCP's metadata server says; None while nothing is announced."""
    answer = client.get(
        "/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
    )
    answer.raise_for_status()
    return Notice("preempt", GCP_NOTICE_S) if answer.text.strip().upper() == "TRUE" else None


READ: dict[Cloud, Callable[[httpx.Client, datetime], Notice | None]] = {
    "aws": read_aws,
    "gcp": read_gcp,
}


def drain(address: str, node_id: str, notice: Notice) -> None:
    """Tell Ray that the node goes. Raises `ClusterError` when Ray does not take it."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
        *("--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", f"spot {notice.action}"),
        *("--deadline-remaining-seconds", str(max(1, int(notice.left_s)))),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ClusterError(f"Ray does not drain node {node_id}: {last}")


def watch(
    cloud: Cloud,
    act: Callable[[Notice], None],
    *,
    base_url: str | None = None,
    every_s: float = EVERY_S,
    stopped: Callable[[], bool] = lambda: False,
) -> Notice | None:
    """Ask until there is a notice, hand it to `act` and return it; None when `stopped`.

    A metadata service that fails or talks nonsense is asked again; so is an `act` that fails.
    """
    troubles = 0
    with httpx.Client(base_url=base_url or ADDRESS[cloud], timeout=2.0) as client:
        while not stopped():
            try:
                notice = READ[cloud](client, datetime.now(UTC))
                if notice is not None:
                    act(notice)
                    return notice
                troubles = 0
            except (httpx.HTTPError, ClusterError, subprocess.TimeoutExpired) as error:
                troubles += 1
                if troubles in (1, 30):
                    _log.warning("the %s notice cannot be read or passed on: %s", cloud, error)
            time.sleep(every_s)
    return None


def own_node_id(address: str) -> str:
    """The Ray node on this machine. Raises `ClusterError` when there is none."""
    import ray
    from ray.util.state import list_nodes

    mine = os.environ.get("RAY_NODE_ID")
    if mine:
        return mine
    ip = ray.util.get_node_ip_address()
    found = [node.node_id for node in list_nodes(address=address) if node.node_ip == ip]
    if not found:
        raise ClusterError(f"no Ray node runs at {ip} in the cluster at {address}")
    return str(found[-1])


def main() -> None:
    """Watch this machine's cloud and drain its node when it is to be taken away."""
    parser = argparse.ArgumentParser(description="drain this node on a cloud's interruption notice")
    parser.add_argument("--cloud", choices=sorted(ADDRESS), required=True)
    parser.add_argument("--address", required=True, help="Ray's GCS, HOST:PORT")
    parser.add_argument("--node-id", help="Ray's id of this node; else found by its address")
    parser.add_argument("--metadata-url", help="another metadata service, for tests")
    given = parser.parse_args()
    try:
        node_id = given.node_id or own_node_id(given.address)
        notice = watch(
            given.cloud,
            lambda notice: drain(given.address, node_id, notice),
            base_url=given.metadata_url,
        )
    except ClusterError as error:
        sys.exit(f"notice: {error}")
    assert notice is not None, "nothing stops the watch"
    print(json.dumps({"node_id": node_id, "action": notice.action, "left_s": notice.left_s}))


if __name__ == "__main__":
    main()

"""The same job on Kubernetes: a RayJob that Kueue admits.

    manifest(spec, settings)     # a dict for `kubectl apply -f`

The team's LocalQueue (`cluster_configs/kuberay/queues.yaml`) is `TEAM` in namespace `TEAM`; the
priority class becomes a WorkloadPriorityClass of that name. Kueue suspends and admits the whole
RayJob, so it is a gang there too. Off-peak windows, deadlines and budgets are this queue's own
and have no counterpart: they are kept as annotations. Inside a pod the dashboard has to listen for
the operator; the service is internal to the cluster, and `cluster_configs/kuberay/network.yaml`
lets only the operator reach it.
"""

from __future__ import annotations

import shlex
from typing import Any

from factory.cluster.queue.spec import JobSpec, new_id
from factory.config import MARKET_LABEL, Settings

IMAGE = "rayproject/ray:2.60.0-py311"


def manifest(spec: JobSpec, settings: Settings, name: str | None = None) -> dict[str, Any]:
    """A `ray.io/v1` RayJob with Kueue's labels."""
    limits: dict[str, Any] = {"cpu": _quantity(max(spec.cpus, 0.1)), "memory": "4Gi"}
    if spec.gpus:
        limits["nvidia.com/gpu"] = _quantity(spec.gpus)
    selector: dict[str, str] = {}
    markets = {settings.pools[pool].market for pool in spec.pools}
    if len(markets) == 1:
        selector = {MARKET_LABEL: {"onprem": "on-prem"}.get(*markets, *markets)}
    notes = {
        f"factory/{key}": str(value)
        for key, value in (
            ("deadline", spec.deadline and spec.deadline.isoformat()),
            ("window", spec.window),
            ("max-usd", spec.max_usd),
        )
        if value is not None
    }
    command = shlex.join(["python", "-m", spec.module, *spec.args])
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name or new_id(spec.module),
            "namespace": spec.team,
            "labels": {
                "kueue.x-k8s.io/queue-name": spec.team,
                "kueue.x-k8s.io/priority-class": spec.priority,
                "factory/team": spec.team,
            },
            **({"annotations": notes} if notes else {}),
        },
        "spec": {
            "entrypoint": command,
            "suspend": True,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": settings.jobs.retries.max_attempts - 1,
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": _pod({"cpu": "1", "memory": "2Gi"}, {}, "ray-head"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": spec.workers,
                        "minReplicas": spec.workers,
                        "maxReplicas": spec.workers,
                        "rayStartParams": {},
                        "template": _pod(limits, selector, "ray-worker"),
                    }
                ],
            },
        },
    }


def _pod(resources: dict[str, Any], selector: dict[str, str], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": name,
                "image": IMAGE,
                "resources": {"requests": dict(resources), "limits": dict(resources)},
            }
        ]
    }
    if selector:
        spec["nodeSelector"] = selector
    return {"spec": spec}


def _quantity(amount: float) -> str:
    return f"{amount:g}" if amount == int(amount) else f"{round(amount * 1000)}m"

"""Every file of `cluster_configs/` against Ray's and Kubernetes' schemas, and the house's rules."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from factory.cluster.clouds.provider import HybridNodeProvider
from factory.cluster.queue.rayjob import manifest
from factory.cluster.queue.spec import JobSpec
from factory.config import MARKET_LABEL, POOL_LABEL
from tests.conftest import default_settings

FOLDER = Path(__file__).parents[2] / "cluster_configs"
LAUNCHER = sorted(FOLDER.glob("*.yaml"))
HYBRID = sorted(FOLDER.glob("onprem-*.yaml"))
KUBERNETES = sorted((FOLDER / "kuberay").glob("*.yaml"))
RELEASE = "1.33"

_GROUP = {
    "type": "object",
    "required": ["rayStartParams", "template"],
    "additionalProperties": False,
    "properties": {
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": {"type": "object", "required": ["spec"]},
        **{name: {"type": "integer"} for name in ("replicas", "minReplicas", "maxReplicas")},
        "groupName": {"type": "string"},
    },
}
_CLUSTER = {
    "type": "object",
    "required": ["headGroupSpec", "rayVersion"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"const": "2.60.0"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {"type": "object"},
        "headGroupSpec": _GROUP,
        "workerGroupSpecs": {"type": "array", "items": _GROUP},
    },
}
_JOB = {
    "type": "object",
    "required": ["entrypoint"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "suspend": {"type": "boolean"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "backoffLimit": {"type": "integer"},
        "rayClusterSpec": _CLUSTER,
        "clusterSelector": {"type": "object"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    },
    "oneOf": [{"required": ["rayClusterSpec"]}, {"required": ["clusterSelector"]}],
}
_AMOUNT = {"type": ["integer", "string"]}
_QUEUE = {
    "type": "object",
    "required": ["resourceGroups", "cohort", "namespaceSelector"],
    "properties": {
        "preemption": {
            "type": "object",
            "properties": {"reclaimWithinCohort": {"enum": ["Any", "Never", "LowerPriority"]}},
        },
        "resourceGroups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["coveredResources", "flavors"],
                "properties": {
                    "flavors": {
                        "items": {
                            "required": ["name", "resources"],
                            "properties": {
                                "resources": {
                                    "items": {
                                        "required": ["name", "nominalQuota"],
                                        "additionalProperties": False,
                                        "properties": {
                                            "name": {"type": "string"},
                                            "nominalQuota": _AMOUNT,
                                            "borrowingLimit": _AMOUNT,
                                            "lendingLimit": _AMOUNT,
                                        },
                                    }
                                }
                            },
                        }
                    }
                },
            },
        },
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "RayCluster": _CLUSTER,
    "RayJob": _JOB,
    "ClusterQueue": _QUEUE,
    "LocalQueue": {"type": "object", "required": ["clusterQueue"]},
    "ResourceFlavor": {"type": "object", "required": ["nodeLabels"]},
}
"""What of the custom resources is used here, after KubeRay 1.5 and Kueue v1beta1; their full
definitions ship with their operators."""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")
        for path in KUBERNETES
        for document in yaml.safe_load_all(path.read_text("utf-8"))
    ]


def check(document: dict[str, Any]) -> None:
    """Core objects against Kubernetes' schema, custom ones against ours, their pods as pods."""
    kind = document["kind"]
    if kind == "WorkloadPriorityClass":
        assert isinstance(document["value"], int)
    elif kind in SCHEMAS:
        jsonschema.validate(document["spec"], SCHEMAS[kind])
        for group in groups(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
            kubernetes_validate.validate({**pod, **group["template"]}, RELEASE, strict=True)
    else:
        kubernetes_validate.validate(document, RELEASE, strict=True)


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document.get("spec", {})
    spec = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" not in spec:
        return []
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
def test_ray_accepts_it_and_the_dashboard_stays_inside(path: Path) -> None:
    config = read(path)
    validate_config(prepare_config(config))
    starts = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert all("--dashboard-host=127.0.0.1" in line for line in starts)
    every = [*starts, *(x for x in config["worker_start_ray_commands"] if "ray start" in x)]
    assert all("RAY_AUTH_MODE=token" in line for line in every)


@pytest.mark.parametrize("path", HYBRID, ids=lambda path: path.stem)
def test_a_hybrid_heads_home_is_never_spot_and_every_type_names_its_provider(path: Path) -> None:
    config = read(path)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["labels"][MARKET_LABEL] in ("on-prem", "on-demand")
    provider = HybridNodeProvider(config["provider"], config["cluster_name"])
    for node in types.values():
        assert {POOL_LABEL, MARKET_LABEL} <= node["labels"].keys()
        name, own = provider._split(node["node_config"])
        spot = "InstanceMarketOptions" in own or (
            own.get("scheduling", {}).get("provisioningModel") == "SPOT"
        )
        assert spot == (node["labels"][MARKET_LABEL] == "spot")
        assert (name == "onprem") == (node["labels"][MARKET_LABEL] == "on-prem")
    assert any(
        "factory.cluster.clouds.notice" in line for line in config["worker_start_ray_commands"]
    )


@pytest.mark.parametrize("document", documents())
def test_kubernetes_accepts_it(document: dict[str, Any]) -> None:
    check(document)
    for group in groups(document)[:1]:
        terms = group["template"]["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]
        assert "spot" not in chain(*(each["values"] for each in terms[0]["matchExpressions"]))


def test_a_submitted_spec_becomes_what_kubernetes_accepts(tmp_path: Path) -> None:
    spec = JobSpec(module="pipelines.finetune", team="support", workers=2, cpus=1.5, gpus=1)
    check(manifest(spec, default_settings(tmp_path)))


def test_the_check_would_notice() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check({"kind": "RayJob", "spec": {"entrypoint": "x", "rayClusterSpec": {}, "typo": 1}})
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "Namespace", "metadata": {"nmae": "x"}})

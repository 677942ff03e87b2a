"""`cluster_configs/monitoring/` asks only for metrics and labels that a gateway shows."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from factory.ledger.records import ChargeRecord
from factory.telemetry.books import Books
from factory.telemetry.engines import EngineState
from factory.telemetry.exposition import render
from factory.telemetry.state import State
from factory.telemetry.traffic import Traffic
from serve_apps.replica_metrics import EmbeddingMetrics, EngineMetrics

FOLDER = Path(__file__).parents[2] / "cluster_configs" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARD = json.loads((FOLDER / "dashboard.json").read_text())
ASKED = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in BOARD["panels"]
    for target in panel["targets"]
}
WORDS = {"by", "on", "and", "or", "unless"}
OF_EVERY_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""


def shown() -> dict[str, set[str]]:
    """Labels by sample, of a gateway that has seen everything once."""
    traffic = Traffic()
    charge = ChargeRecord(
        charge_id="c",
        request_id="r",
        seq=0,
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        team="support",
        endpoint="helpdesk",
        kind="generation",
        tier=1,
        prompt_tokens=3,
        cost_nusd=5,
    )
    traffic.settled(
        team="support",
        endpoint="helpdesk",
        tier=1,
        model="small",
        status=200,
        cache="miss",
        degraded=True,
        elapsed_s=0.1,
        charges=[charge],
    )
    traffic.first_token("helpdesk", 1, 0.05)
    traffic.searched("search", 0.01)
    state = State(
        waiting={"production": 1},
        asleep={"small": True},
        targets_s={"helpdesk": 0.8},
        engines={
            "engine-small": EngineState(replicas=1, running=1, own={"a": EngineMetrics().text()}),
            "embedder-mini": EngineState(
                replicas=1, running=1, generates=False, own={"b": EmbeddingMetrics().text()}
            ),
        },
        books=Books(
            remaining={("team:support", "day"): 0.5}, waits_s={"support": 1.0}, jobs={"waiting": 1}
        ),
    )
    families = text_string_to_metric_families(render(traffic, state).decode())
    samples = [sample for family in families for sample in family.samples]
    return {one.name: set(one.labels) | OF_EVERY_SCRAPE for one in samples} | {
        "up": OF_EVERY_SCRAPE
    }


def read(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    labels: set[str] = set()
    for selector in re.findall(r"\{([^}]*)\}", bare):
        labels |= set(re.findall(r"(\w+)\s*(?:=|!)", selector))
    for listed in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
        labels |= set(re.findall(r"\w+", listed))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", bare)
    return set(names) - WORDS, labels


def test_the_reader_of_expressions_sees_metrics_and_labels():
    expression = 'sum by (le) (rate(a_bucket{x=~"5..",y!="b"}[5m])) / 1e9 > on (z) max by (z) (c:d)'
    assert read(expression) == ({"a_bucket", "c:d"}, {"le", "x", "y", "z"})


@pytest.mark.parametrize("name", ASKED)
def test_every_metric_and_label_exists(name):
    metrics, labels = read(ASKED[name])
    known = shown()
    assert metrics
    assert metrics <= known.keys()
    assert labels <= set().union(*(known[one] for one in metrics))
    assert ASKED[name].count("(") == ASKED[name].count(")")


def test_alerts_say_what_is_wrong_and_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["for"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "action"}
        kept = read(rule["expr"])[1] | set().union(*(shown()[one] for one in read(rule["expr"])[0]))
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= kept


def test_prometheus_reads_the_alerts_and_the_gateway():
    document = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert document["rule_files"] == ["alerts.yml"]
    jobs = {one["job_name"]: one for one in document["scrape_configs"]}
    assert jobs.keys() == {"factory-gateway", "ray"}
    for rule in RULES:
        assert set(re.findall(r'job="([\w-]+)"', rule["expr"])) <= jobs.keys()


def test_no_panel_lies_on_another():
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }

    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for one, other in combinations(BOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert all(x < 24 for panel in BOARD["panels"] for x, _ in cells(panel))

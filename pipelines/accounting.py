"""What the ledger says about requests that were sent, checked against what their clients saw.

accounted = account(factory, replies)
accounted["costs"]["cost_per_1k_usd"], accounted["tiers"], accounted["traffic"]
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from factory import Factory
from factory.config import Settings
from factory.ledger.money import usd
from factory.ledger.report import costs_report
from pipelines.traffic import Reply


def account(factory: Factory, replies: Sequence[Reply]) -> dict[str, Any]:
    """The ledger's own figures for exactly these replies, and one request explained."""
    ids = [reply.headers["x-factory-request-id"] for reply in replies if _identified(reply)]
    recorded = [found for found in (factory.ledger.request(one) for one in ids) if found]
    unrecorded = len(ids) - len(recorded)
    records = [record for record, _ in recorded]
    charges = [charge for _, parts in recorded for charge in parts]
    costs = costs_report(records, charges)
    answered = [record for record in records if record.status == "ok"]
    by_tier: dict[str, list[float]] = defaultdict(list)
    for record in answered:
        by_tier[str(record.tier)].append(record.latency_ms)
    dearest = max(answered, key=lambda record: (len(record.reasons), record.cost_nusd))
    explained = factory.explain(dearest.request_id)
    return {
        "costs": _plain(costs.as_dict()),
        "tiers": _tiers(answered, charges, tier_names(factory.settings)),
        "latency": {"by_tier_ms": {tier: sorted(values) for tier, values in by_tier.items()}},
        "traffic": _kinds(replies)
        | {"sent": len(replies), "recorded": len(records), "unrecorded": unrecorded},
        "explained": {
            "request_id": dearest.request_id,
            "reasons": explained.lines(),
        },
    }


def tier_names(settings: Settings) -> dict[int, str]:
    """What stands on each tier, for people."""
    models = {
        model.tier: name for name, model in settings.models.items() if model.task == "generate"
    }
    return {0: "0 · cache"} | {tier: f"{tier} · {name}" for tier, name in models.items()}


def _identified(reply: Reply) -> bool:
    return bool(reply.headers.get("x-factory-request-id"))


def _tiers(
    answered: Sequence[Any], charges: Sequence[Any], names: Mapping[int, str]
) -> list[dict[str, Any]]:
    spent: Counter[int] = Counter()
    for charge in charges:
        if charge.tier is not None:
            spent[charge.tier] += charge.cost_nusd
    rows = []
    for tier in sorted({record.tier for record in answered if record.tier is not None}):
        latencies = sorted(record.latency_ms for record in answered if record.tier == tier)
        rows.append(
            {
                "tier": tier,
                "name": names.get(tier, str(tier)),
                "requests": len(latencies),
                "share": len(latencies) / len(answered),
                "nusd": spent[tier],
                "usd": usd(spent[tier]),
                "p50_ms": quantile(latencies, 0.50),
                "p95_ms": quantile(latencies, 0.95),
            }
        )
    return rows


def _kinds(replies: Sequence[Reply]) -> dict[str, Any]:
    kinds: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        kinds[reply.request.kind].append(reply)
    rows = [
        {
            "kind": kind,
            "sent": len(group),
            "answered": sum(one.status == 200 for one in group),
            "correct": sum(one.correct for one in group),
            "cached": sum(one.headers.get("x-factory-cache") == "hit" for one in group),
            "degraded": sum(one.headers.get("x-factory-degraded") == "true" for one in group),
        }
        for kind, group in sorted(kinds.items())
    ]
    faults = {
        reply.request.fault: {
            "fault": reply.request.fault,
            "status": reply.status,
            "message": reply.error,
        }
        for reply in kinds.get("malformed", [])
    }
    unexpected = [reply for reply in replies if reply.status != reply.request.want_status]
    return {
        "kinds": rows,
        "faults": list(faults.values()),
        "unexpected": [f"{one.request.kind}: {one.status} {one.error}" for one in unexpected],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` of an ascending sequence; 0 of an empty one."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))

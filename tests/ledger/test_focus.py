"""The FOCUS export: the specification's columns, rows that add up to the ledger, whole files."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from factory.cli import app
from factory.config import Settings, parse
from factory.ledger import focus, nodes
from factory.ledger.errors import LedgerError
from factory.ledger.explanation import explain
from factory.ledger.export import export
from factory.ledger.focus import COLUMNS, floor, rows, sums, totals
from factory.ledger.nodes import Hold, NodeSpan, usage_of
from factory.ledger.records import ChargeRecord, RequestRecord
from factory.ledger.schema import JOB_CHARGES
from factory.ledger.store import Ledger

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

MANDATORY = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
]
"""Columns that FOCUS 1.2 wants in every data set (focus.finops.org, specification 1.2)."""
NOT_NULL = {*MANDATORY} - {"ChargeClass"}
"""ChargeClass says `Correction` or nothing."""
OTHERS = [
    "AvailabilityZone",
    "BillingAccountType",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "PricingCategory",
    "PricingCurrency",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
]
"""Further columns of the specification that are in use."""
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning", "Compute"},
    "ServiceSubcategory": {"Generative AI", "Machine Learning", "Virtual Machines"},
    "BillingCurrency": {"USD"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    document = {
        "models": {
            "small": {"source": {"path": "/m"}, "engine": "vllm", "tier": 1, "price": price},
            "premium": {
                "source": {"base_url": "http://p", "model": "big", "api_key": "k"},
                "engine": "openai",
                "tier": 3,
                "price": price,
            },
        },
        "endpoints": {},
        "teams": {},
        "pools": {
            "onprem": {"capex_usd": 1000, "amortize_months": 36, "power_w": 100},
            "spot": {
                "provider": "aws",
                "region": "us-east-2",
                "usd_per_hour": 1,
                "spot_policy": "spot",
                "max_nodes": 2,
            },
        },
    }
    return parse(json.dumps(document), "t.yaml", tmp_path, {"FACTORY_HOME": str(tmp_path)})


def request(number: int, at: datetime, *parts: tuple[str | None, int]) -> tuple[object, ...]:
    name = f"req-{number}"
    who = {"team": f"team-{number % 2}", "endpoint": "helpdesk"}
    charges = [
        ChargeRecord(
            charge_id=f"{name}-{seq}",
            request_id=name,
            seq=seq,
            created_at=at,
            kind="generation" if model else "cache",
            tier={"small": 1, "premium": 3}.get(model or "", 0),
            model=model,
            prompt_tokens=10,
            completion_tokens=5,
            cost_nusd=cost,
            latency_ms=2000,
            **who,
        )
        for seq, (model, cost) in enumerate(parts)
    ]
    total = sum(cost for _, cost in parts)
    record = RequestRecord(
        request_id=name,
        created_at=at,
        status="ok",
        http_status=200,
        tier=charges[-1].tier,
        cost_nusd=total,
        **who,
    )
    return record, charges


def filled(ledger: Ledger) -> None:
    """Two hours of requests, a job and nodes."""
    minute = timedelta(minutes=1)
    entries = [
        request(1, NOON + minute, ("small", 100)),
        request(2, NOON + 2 * minute, ("small", 101), ("premium", 7_000)),
        request(3, NOON + 70 * minute, ("small", 33)),
        request(4, NOON + 71 * minute, (None, 0)),
    ]
    ledger.record_many(entries)  # type: ignore[arg-type]
    with ledger.write() as connection:
        for seq in range(3):
            since = NOON + timedelta(minutes=50 + 10 * seq)
            connection.execute(
                JOB_CHARGES.insert().values(
                    job_id="tune-1",
                    seq=seq,
                    created_at=since,
                    team="team-1",
                    pool="spot",
                    attempt=1,
                    since=since,
                    until=since + timedelta(minutes=10),
                    cost_nusd=166_666_667,
                )
            )
    holds = (Hold("model", "small", 600_001), Hold("overhead", "gateway", 99_999))
    nodes.record(
        ledger,
        [
            NodeSpan(
                machine=machine,
                node_id=machine,
                pool=pool,
                zone=None,
                starts_at=NOON + number * minute,
                ends_at=NOON + (number + 1) * minute,
                nusd_per_hour=60_000_060,
                cost_nusd=1_000_001,
                holds=held,
            )
            for number in range(75)
            for machine, pool, held in (
                ("m", "onprem", holds),
                ("s", "spot", (Hold("job", "tune-1.1", 1_000_001),)),
            )
        ],
    )


def test_the_columns_are_those_of_the_specification() -> None:
    own = [name for name in COLUMNS if not name.startswith("x_")]
    assert set(MANDATORY) <= set(own)
    assert set(own) == {*MANDATORY, *OTHERS}
    assert own == sorted(own)


@pytest.mark.parametrize("period", ["hour", "day", "charge"])
def test_rows_keep_the_rules_and_add_up_to_the_ledger(
    ledger: Ledger, settings: Settings, period: focus.Period
) -> None:
    filled(ledger)
    with ledger.read() as connection:
        found = list(rows(connection, settings, None, None, period))
        expected = totals(connection, settings, None, None)
    assert sums(found) == expected
    assert expected.billed_nusd == 100 + 101 + 7_000 + 33 + 3 * 166_666_667
    assert expected.effective_nusd == 150 * 1_000_001 + 7_000  # nodes, and the provider's bill
    for row in found:
        assert list(row) == list(COLUMNS)
        assert all(row[name] is not None for name in NOT_NULL), row
        assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["BillingPeriodEnd"]
        assert all(row[name] in allowed for name, allowed in ALLOWED.items())
        assert row["ListCost"] == max(row["BilledCost"], row["EffectiveCost"])
        assert isinstance(json.loads(row["Tags"]), dict)
    uses = defaultdict(Decimal)
    for row in found:
        uses[row["x_CostBasis"], row["x_Pool"], row["x_Use"]] += row["EffectiveCost"]
    per_pool = {
        pool.pool: pool
        for pool in nodes.usage(ledger, NOON - timedelta(hours=1), NOON + timedelta(hours=2)).pools
    }
    for name, pool in per_pool.items():
        for use in ("workload", "idle", "overhead"):
            counted = uses["usage", name, use] * 10**9
            assert int(counted) == pytest.approx(getattr(pool, f"{use}_nusd"), abs=150)
    charges = [row for row in found if row["ResourceType"] == "Request"]
    assert len(charges) == (5 if period == "charge" else 0)


def test_a_range_takes_what_began_in_it(ledger: Ledger, settings: Settings) -> None:
    filled(ledger)
    whole = focus.Totals(0, 0)
    for start in (None, NOON + timedelta(hours=1)):
        until = NOON + timedelta(hours=1) if start is None else None
        with ledger.read() as connection:
            found = list(rows(connection, settings, start, until))
            assert sums(found) == totals(connection, settings, start, until)
        part = sums(found)
        whole = focus.Totals(
            whole.billed_nusd + part.billed_nusd, whole.effective_nusd + part.effective_nusd
        )
    with ledger.read() as connection:
        assert whole == totals(connection, settings, None, None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_hold_the_same_and_are_whole(
    ledger: Ledger, settings: Settings, tmp_path: Path, suffix: str
) -> None:
    filled(ledger)
    path = tmp_path / f"costs{suffix}"
    written = export(ledger, settings, path)
    if suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file))
        assert read[0]["ChargePeriodStart"] == "2026-11-24T12:00:00Z"
    else:
        read = pq.read_table(path).to_pylist()
        assert read[0]["ChargePeriodStart"] == NOON
    assert list(read[0]) == list(COLUMNS)
    assert len(read) == written.rows
    assert sum(Decimal(row["BilledCost"]) for row in read) * 10**9 == written.billed_nusd
    assert sum(Decimal(row["EffectiveCost"]) for row in read) * 10**9 == written.effective_nusd
    assert not list(tmp_path.glob(".*draft"))


def test_what_cannot_be_written_is_one_sentence(
    ledger: Ledger, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(ledger)
    with pytest.raises(LedgerError, match=r"must end in \.csv or \.parquet"):
        export(ledger, settings, tmp_path / "costs.xlsx")
    with pytest.raises(LedgerError, match="cannot be written: No such file"):
        export(ledger, settings, tmp_path / "nowhere" / "costs.csv")
    monkeypatch.setattr("factory.ledger.export.totals", lambda *_: focus.Totals(1, 1))
    with pytest.raises(LedgerError, match="nothing was written"):
        export(ledger, settings, tmp_path / "costs.csv")
    assert not list(tmp_path.glob("*costs.csv*"))


def test_an_empty_ledger_is_a_header(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    assert export(ledger, settings, tmp_path / "none.csv").rows == 0
    assert (tmp_path / "none.csv").read_text().strip() == ",".join(COLUMNS)
    assert export(ledger, settings, tmp_path / "none.parquet").rows == 0


def test_a_request_knows_what_its_nodes_cost(ledger: Ledger) -> None:
    filled(ledger)
    record, charges = ledger.settled("req-2")
    used = usage_of(ledger, charges)
    assert used is not None
    # Two busy seconds of a minute, of which a thirtieth of the model's part was work; it is alone.
    assert used.usage_nusd == 600_001 * 2 // 60
    assert (used.since, used.requests) == (NOON + timedelta(minutes=2), 1)
    explained = explain(record, charges, usage=used)
    assert any(line.startswith("usage basis: 0.000020000 USD") for line in explained.lines())
    assert explained.as_dict()["usage"]["usage_nusd"] == 20_000
    assert usage_of(ledger, ledger.settled("req-4")[1]) is None  # from the cache


@given(st.datetimes(timezones=st.just(UTC)))
def test_periods_begin_before_what_is_in_them(moment: datetime) -> None:
    assert floor(moment, "day") <= floor(moment, "hour") <= moment
    assert moment - floor(moment, "hour") < timedelta(hours=1)


def test_the_command_writes_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["costs", "export", "out.csv", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "path": "out.csv",
        "rows": 0,
        "billed_usd": "0.000000000",
        "effective_usd": "0.000000000",
    }
    assert CliRunner().invoke(app, ["costs", "export", "out.txt"]).exit_code == 1

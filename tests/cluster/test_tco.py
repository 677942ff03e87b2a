from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from factory import Factory
from factory.cli import app
from factory.cluster.errors import ClusterError
from factory.cluster.placement import Work
from factory.cluster.tco import load as tco_load
from factory.cluster.tco.comparison import (
    SOURCES,
    Cloud,
    Load,
    Own,
    Plan,
    assumptions,
    break_even,
    compare,
)
from factory.cluster.tco.plot import draw
from factory.config import OwnPool, RentedPool
from factory.ledger.nodes import Hold, NodeSpan, record
from factory.ledger.store import open_ledger

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def test_a_plan_without_any_statement_adds_up() -> None:
    found = compare(Plan())
    own, cloud, hybrid = found.ways
    hours = Plan().load.node_hours / 0.95
    assert cloud.parts["rent"] == pytest.approx(hours * Plan().cloud.usd_per_busy_hour)
    assert own.parts["capital"] == own.own_nodes * 9000 / 36
    assert hybrid.usd_per_month <= found.ways[1].usd_per_month + 1e9
    assert found.cheapest.usd_per_month == min(way.usd_per_month for way in found.ways)


def test_every_default_has_a_date_and_a_source() -> None:
    listed = assumptions(Plan())
    assert {key for key, *_ in listed} == set(SOURCES)
    assert all(date and source for _, _, date, source in listed)
    stated = {key: source for key, _, _, source in assumptions(Plan(own=Own(power_w=700)))}
    assert stated["own.power_w"] == ""
    assert stated["own.pue"] != ""


@given(
    steady=st.floats(0.1, 10),
    more=st.floats(0, 10),
    hours=st.floats(1, 700),
    capex=st.floats(500, 50_000),
    rent=st.floats(0.1, 20),
)
@settings(max_examples=60, deadline=None)
def test_at_the_break_even_both_cost_the_same(
    steady: float, more: float, hours: float, capex: float, rent: float
) -> None:
    plan = Plan(
        load=Load(steady_nodes=steady, peak_nodes=steady + more, peak_hours_per_month=hours),
        own=Own(capex_usd=capex),
        cloud=Cloud(ondemand_usd_per_hour=rent, spot_usd_per_hour=rent / 3),
    )
    found = compare(plan)
    share = found.break_even_utilization
    own, cloud, _ = found.ways
    if share is None:
        return
    # On either side of the break-even the cheaper one is the one it says.
    if found.utilization > share + 0.01:
        assert own.usd_per_month < cloud.usd_per_month
    if found.utilization < share - 0.01:
        assert own.usd_per_month > cloud.usd_per_month


@given(st.floats(0.1, 5), st.floats(0, 10), st.floats(0, 700), st.floats(0, 12))
def test_work_below_and_above_any_number_of_nodes_is_all_of_it(
    steady: float, more: float, hours: float, nodes: float
) -> None:
    load = Load(steady_nodes=steady, peak_nodes=steady + more, peak_hours_per_month=hours)
    assert 0 <= load.above(nodes) <= load.node_hours + 1e-9
    assert load.above(load.peak_nodes) == pytest.approx(0, abs=1e-6)


def test_dearer_machines_move_the_break_even_up_and_dearer_rent_down() -> None:
    cloud = Cloud(ondemand_usd_per_hour=1.8, spot_usd_per_hour=0.9)
    plan = Plan(load=Load(steady_nodes=3, peak_nodes=4), cloud=cloud)
    base = break_even(plan)
    dear = break_even(plan.model_copy(update={"own": Own(capex_usd=12_000)}))
    rent = break_even(
        plan.model_copy(update={"cloud": Cloud(ondemand_usd_per_hour=3, spot_usd_per_hour=1)})
    )
    assert base is not None
    assert dear is not None
    assert rent is not None
    assert rent < base < dear


def test_a_steady_base_with_rare_peaks_is_cheapest_on_both() -> None:
    load = Load(steady_nodes=4, peak_nodes=20, peak_hours_per_month=20)
    cloud = Cloud(ondemand_usd_per_hour=3, spot_usd_per_hour=1)
    found = compare(Plan(load=load, cloud=cloud))
    assert found.cheapest.name == "hybrid"
    assert 3 <= found.cheapest.own_nodes < 20


def test_cash_is_ahead_later_than_cost() -> None:
    load = Load(steady_nodes=4, peak_nodes=4)
    found = compare(Plan(load=load, cloud=Cloud(ondemand_usd_per_hour=3, spot_usd_per_hour=1)))
    assert found.break_even_month is not None
    assert 1 < found.break_even_month < 36
    cheap = Cloud(ondemand_usd_per_hour=0.02, spot_usd_per_hour=0.01)
    assert compare(Plan(load=load, cloud=cheap)).break_even_month is None
    assert compare(Plan(load=load, cloud=cheap)).break_even_utilization is None


def test_the_load_is_measured_from_the_ledgers_node_hours(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'factory.db'}")
    spans = []
    for hour in range(48):
        busy = 900 if 9 <= hour % 24 < 17 else 100
        start = MONDAY + timedelta(hours=hour)
        spans += [
            NodeSpan(
                machine=machine,
                node_id=machine,
                pool="onprem",
                zone=None,
                starts_at=start,
                ends_at=start + timedelta(hours=1),
                nusd_per_hour=1000,
                cost_nusd=1000,
                holds=(Hold("job", "j", busy), Hold("overhead", "gw", 50)),
            )
            for machine in ("a", "b")
        ]
    record(ledger, spans)
    hours = tco_load.usage_by_hour(ledger)
    ledger.close()
    assert len(hours) == 48
    assert hours[10] == pytest.approx(1.8)
    pools = {
        "mine": OwnPool(capex_usd=Decimal(20000), amortize_months=48, power_w=900, nodes=2),
        "spot": RentedPool(
            provider="aws", usd_per_hour=Decimal("0.5"), max_nodes=2, spot_policy="spot"
        ),
    }
    plan = tco_load.measured(hours, pools, Plan())
    assert plan.load.steady_nodes == pytest.approx(0.2)
    assert plan.load.peak_nodes == pytest.approx(1.8)
    assert plan.load.peak_hours_per_month == pytest.approx(730 / 3)
    assert (plan.own.capex_usd, plan.cloud.spot_usd_per_hour) == (20000, 0.5)
    assert plan.cloud.ondemand_usd_per_hour == Cloud().ondemand_usd_per_hour


def test_too_little_usage_is_no_forecast() -> None:
    with pytest.raises(ClusterError, match="has 3 hours of node-hours"):
        tco_load.measured([1, 1, 1], {}, Plan())
    with pytest.raises(ClusterError, match="nothing was busy"):
        tco_load.measured([0.0] * 30, {}, Plan())


def test_it_is_drawn_as_png_and_svg_and_nothing_else(tmp_path: Path) -> None:
    found = compare(Plan())
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        draw(found, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ClusterError, match=re.escape("ends in .png or .svg")):
        draw(found, tmp_path / "a.gif")
    with pytest.raises(ClusterError, match="does not exist"):
        draw(found, tmp_path / "none" / "a.png")


def test_the_command_reads_a_plan_and_says_what_is_wrong_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    run = CliRunner().invoke
    plan = tmp_path / "plan.yaml"
    plan.write_text("load: {steady_nodes: 2, peak_nodes: 3}\nown: {capex_usd: 15000}\n")
    found = json.loads(run(app, ["tco", "--plan", str(plan), "--json"]).stdout)
    assert {way["name"] for way in found["ways"]} == {"onprem", "cloud", "hybrid"}
    assert "own.capex_usd" not in found["defaults"]
    assert "cloud.egress_usd_per_gb" in found["defaults"]
    plan.write_text("load: {steady_nodes: 5, peak_nodes: 3}\n")
    bad = run(app, ["tco", "--plan", str(plan)])
    assert bad.exit_code == 1
    assert "plan.yaml, line 1: load: peak_nodes must be at least steady_nodes" in bad.stderr
    empty = run(app, ["tco", "--from-ledger"])
    assert empty.exit_code == 1
    assert "let the cluster run" in empty.stderr


def test_place_prints_a_table_and_ends_with_1_when_nothing_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    run = CliRunner().invoke
    spec = tmp_path / "work.yaml"
    spec.write_text("{name: tune, hours: 2, cpus: 1}")
    shown = run(app, ["place", str(spec)])
    assert shown.exit_code == 0
    assert "chosen" in shown.stdout
    assert json.loads(run(app, ["place", str(spec), "--json"]).stdout)["pool"] == "onprem"
    spec.write_text("{name: tune, hours: 2, gpus: 64}")
    bad = run(app, ["place", str(spec)])
    assert bad.exit_code == 1
    assert "larger than any pool" in bad.stderr


def test_the_sdk_places_compares_and_reports_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    with Factory() as factory:
        assert factory.place(Work(hours=1)).pool == "onprem"
        assert factory.tco().cheapest in factory.tco(Plan()).ways
        assert factory.usage().pools == ()

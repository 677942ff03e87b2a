from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.cluster.meter import use_of
from factory.cluster.nodehours import Clock, Node, Use, count, node_of, pool_of, resumed
from factory.config import OwnPool, Pool, RentedPool

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPOT = RentedPool(provider="aws", usd_per_hour=Decimal(1), max_nodes=4, spot_policy="spot")
POOLS: dict[str, Pool] = {
    "onprem": OwnPool(capex_usd=Decimal(1500), amortize_months=48, power_w=60),
    "spot": SPOT,
}


def seconds(amount: float) -> timedelta:
    return timedelta(seconds=amount)


@given(
    beats=st.lists(
        st.tuples(
            st.floats(0.1, 600),  # steady seconds since the last beat
            st.floats(-1e6, 1e6),  # what the wall clock jumps by
            st.sampled_from(["alive", "dead", "gone", "renamed", "restart"]),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_no_moment_of_a_machine_is_counted_twice(beats: list[tuple[float, float, str]]) -> None:
    clock, wall, steady, spans = Clock(), NOON, 0.0, []
    node_id, lost = "n0", 0.0
    for number, (pause, jump, event) in enumerate(beats):
        steady += pause
        wall += seconds(pause + jump)
        if event == "restart":
            clock = resumed(clock.counted)
            lost += 86_400
        if event == "renamed":
            node_id = f"n{number}"
        node = Node(
            node_id,
            "machine",
            "spot",
            alive=event != "dead",
            started=NOON,
            ended=wall if event == "dead" else None,
            cpus=4,
            uses=(Use("job", "j", cpus=1), Use("overhead", "proxy", cpus=7)),
        )
        nodes = [] if event == "gone" else [node]
        clock, new = count(nodes, clock, wall=wall, steady=steady, pools=POOLS)
        spans += new
    for before, after in pairwise(spans):
        assert before.ends_at <= after.starts_at
    total = sum((span.ends_at - span.starts_at).total_seconds() for span in spans)
    assert total <= steady + lost + 86_400 + 1e-3
    for span in spans:
        held = sum(hold.nusd for hold in span.holds)
        assert held + span.idle_nusd == span.cost_nusd
        assert span.idle_nusd >= 0


def test_an_hour_is_an_hours_price_whatever_the_wall_clock_does() -> None:
    node = Node("n", "m", "spot", started=NOON, cpus=2, uses=(Use("job", "j", cpus=1),))
    clock, first = count([node], Clock(), wall=NOON, steady=0, pools=POOLS)
    assert first == []
    spent = 0
    for minute in range(1, 61):
        wall = NOON + timedelta(minutes=minute) + timedelta(days=minute % 3 - 1)
        clock, spans = count([node], clock, wall=wall, steady=60.0 * minute, pools=POOLS)
        spent += sum(span.cost_nusd for span in spans)
    assert spent == pytest.approx(10**9, abs=60)


def test_a_node_that_comes_back_from_the_dead_goes_on_where_it_was_counted() -> None:
    alive = Node("n", "m", "spot", started=NOON, cpus=2)
    dead = Node("n", "m", "spot", alive=False, started=NOON, ended=NOON + seconds(60), cpus=2)
    clock, _ = count([alive], Clock(), wall=NOON, steady=0, pools=POOLS)
    clock, one = count([dead], clock, wall=NOON + seconds(90), steady=90, pools=POOLS)
    clock, two = count([alive], clock, wall=NOON + seconds(120), steady=120, pools=POOLS)
    assert (one[0].starts_at, one[0].ends_at) == (NOON, NOON + seconds(60))
    assert (two[0].starts_at, two[0].ends_at) == (NOON + seconds(60), NOON + seconds(120))
    again = Node("n2", "m", "spot", started=NOON + seconds(150), cpus=2)
    clock, three = count([dead, again], clock, wall=NOON + seconds(180), steady=180, pools=POOLS)
    assert (three[0].starts_at, three[0].ends_at) == (NOON + seconds(150), NOON + seconds(180))


def test_a_meter_that_was_down_counts_what_ran_meanwhile_but_no_more_than_a_day() -> None:
    node = Node("n", "m", "spot", started=NOON, cpus=2)
    clock = resumed({"m": NOON + seconds(60)})
    _, hour = count([node], clock, wall=NOON + timedelta(hours=1), steady=5, pools=POOLS)
    assert hour[0].starts_at == NOON + seconds(60)
    _, days = count([node], clock, wall=NOON + timedelta(days=900), steady=5, pools=POOLS)
    assert days[0].ends_at - days[0].starts_at == timedelta(days=1)


def test_a_pool_that_is_no_longer_configured_is_never_free() -> None:
    node = Node("n", "m", "old", started=NOON, cpus=2)
    _, spans = count([node], Clock(), wall=NOON + seconds(3600), steady=0, pools=POOLS)
    assert spans[0].cost_nusd == SPOT.nusd_per_hour


def test_a_gpu_nodes_price_follows_its_gpus() -> None:
    node = Node("n", "m", "spot", cpus=10, gpus=2)
    assert node.share(Use("job", "j", cpus=5)) == pytest.approx(0.1)
    assert node.share(Use("job", "j", cpus=5, gpus=1)) == pytest.approx(0.5)


def test_rays_rows_become_nodes() -> None:
    row = {
        "node_id": "ab",
        "state": "ALIVE",
        "labels": {"ray.io/market-type": "spot", "ray.io/availability-zone": "z"},
        "resources_total": {"CPU": 4.0, "memory": 2.0**31},
        "start_time_ms": 1000,
    }
    node = node_of(row, [], POOLS)
    assert (node.pool, node.zone, node.cpus, node.memory_gib) == ("spot", "z", 4, 2)
    assert node.started == datetime.fromtimestamp(1, UTC)
    assert pool_of({"factory/pool": "mine"}, POOLS) == "mine"
    assert pool_of({}, POOLS) == "onprem"


@pytest.mark.parametrize(
    ("name", "job", "kind", "holder"),
    [
        ("ServeReplica:factory:engine-smol-135m-helpdesk", "01", "model", "smol-135m"),
        ("ServeReplica:factory:embedder-minilm", "01", "model", "minilm"),
        ("ServeReplica:factory:gateway", "01", "overhead", "gateway"),
        ("ServeController", "01", "overhead", "ServeController"),
        ("RayTrainWorker", "02", "job", "tune-1"),
        ("Mine", "03", "work", "Mine"),
    ],
)
def test_who_holds_what(name: str, job: str, kind: str, holder: str) -> None:
    row = {"required_resources": {"CPU": 1.0}, "job_id": job}
    found = use_of(name, row, {"02": "tune-1"}, ["smol", "smol-135m", "minilm"])
    assert found == Use(kind, holder, 1.0, 0.0)
    assert use_of(name, {"required_resources": {}}, {}, []) is None

"""In which order a deployment replaces what runs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serve_apps.rollover import Part, Rollover, Room
from serve_apps.rollover import rollover as ordered

OLD = "factory:engine-a:1"
NEW = Part(name="factory:engine-a:2", deployment="engine-a", floor=1, cpus=0.5, memory=2e9)


GATEWAY = Part(name="factory", deployment="gateway", cpus=0.1)


def rollover(wanted: list[Part], running: set[str], rooms: list[Room]) -> Rollover:
    return ordered(wanted, running, rooms, GATEWAY)


def test_a_successor_starts_beside_the_old_where_there_is_room() -> None:
    order = rollover([NEW], {OLD}, [Room(cpus=0.6, memory=3e9)])

    assert order.beside == {NEW.name: 1}
    assert order.stale == (OLD,)
    assert not order.after
    assert not order.reasons


def test_without_room_it_waits_until_the_old_has_gone_and_says_why() -> None:
    for room in (Room(cpus=0.55), Room(cpus=4, memory=1e9)):
        order = rollover([NEW], {OLD}, [room])
        assert order.after == {NEW.name: 1}
        assert not order.beside
        assert order.reasons == (
            "engine-a: no node has 0.5 CPUs and 2.0 GB free beside what runs, so its requests wait "
            "while the new version starts",
        )


def test_what_runs_in_its_version_is_kept() -> None:
    order = rollover([replace(NEW, name=OLD)], {OLD}, [])

    assert order.kept == (OLD,)
    assert not {*order.beside, *order.after, *order.stale}


def test_production_has_the_room_first() -> None:
    sleeper = replace(NEW, name="factory:engine-0:2", deployment="engine-0", floor=0)
    order = rollover([sleeper, NEW], {OLD}, [Room(cpus=0.7)])

    assert set(order.beside) == {NEW.name}
    assert set(order.after) == {sleeper.name}


def test_as_many_replicas_as_before_start_or_else_the_floor() -> None:
    three = replace(NEW, replicas=3)
    nodes = [Room(cpus=1.1), Room(cpus=0.5)]

    assert rollover([three], {OLD}, nodes).beside == {NEW.name: 3}
    assert rollover([three], {OLD}, nodes[:1]).beside == {NEW.name: 1}
    assert "3 replicas" not in rollover([three], {OLD}, []).reasons[0]


def test_a_replica_needs_one_node_that_has_all_of_it() -> None:
    scattered = [Room(cpus=0.4), Room(cpus=0.4), Room(cpus=4, memory=1e9)]

    assert not rollover([NEW], {OLD}, scattered).beside


parts = st.builds(
    Part,
    name=st.sampled_from([f"factory:engine-{one}:1" for one in "abcdef"]),
    deployment=st.just("engine"),
    floor=st.integers(0, 2),
    replicas=st.integers(1, 3),
    cpus=st.sampled_from([0.2, 0.5, 1.0]),
    memory=st.sampled_from([0.0, 2e9]),
)
rooms = st.lists(st.builds(Room, cpus=st.floats(0, 4), memory=st.sampled_from([1e9, 8e9])))


@given(st.lists(parts, unique_by=lambda one: one.name), st.sets(st.text("ab", min_size=1)), rooms)
def test_everything_has_its_place_and_nothing_more_than_fits(
    wanted: list[Part], running: set[str], free: list[Room]
) -> None:
    running |= {part.name for part in wanted[::2]}
    order = rollover(wanted, running, free)

    assert {*order.kept, *order.beside, *order.after} == {part.name for part in wanted}
    assert {*order.kept, *order.stale} == running
    by_name = {part.name: part for part in wanted}
    taken = sum(by_name[name].cpus * count for name, count in order.beside.items())
    assert taken <= sum(room.cpus for room in free) + 1e-3
    assert all(count >= max(1, by_name[name].floor) for name, count in order.beside.items())
    assert len(order.reasons) == len(order.after)


def test_the_gateways_own_successor_has_room_before() -> None:
    room = Room(cpus=NEW.cpus + 2 * GATEWAY.cpus)

    assert ordered([NEW], {OLD}, [room], replace(GATEWAY, replicas=2)).beside
    assert not ordered([NEW], {OLD}, [room], replace(GATEWAY, replicas=3)).beside


def test_only_a_node_that_may_hold_it_has_room() -> None:
    held = replace(NEW, nodes={"factory/pool": "in(onprem,ondemand)"})
    spot, ours = (Room(cpus=1, labels={"factory/pool": name}) for name in ("spot", "ondemand"))

    assert not rollover([held], {OLD}, [spot, Room(cpus=1)]).beside
    assert rollover([held], {OLD}, [spot, ours]).beside
    assert rollover([replace(held, nodes={"factory/pool": "ondemand"})], {OLD}, [ours]).beside

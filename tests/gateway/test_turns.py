"""Turns: never more than the bounds, in order, and nothing lost when clients leave."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Limits
from factory.gateway.errors import ApiError
from factory.gateway.fairness import Caller
from factory.gateway.turns import Turns, bounds, retry_after, standing


async def settle_down():
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Client:
    """A request that holds its turn until it is told to stop."""

    def __init__(self, turns, priority=50, scopes=(), name=""):
        self.name, self.priority, self.scopes = name, priority, scopes
        self.turn = turns.take(priority, scopes)
        self.stop = asyncio.Event()
        self.holding = False
        self.refusal = None
        self.task = asyncio.create_task(self._run())

    async def _run(self):
        try:
            async with self.turn:
                self.holding = True
                try:
                    await self.stop.wait()
                finally:
                    self.holding = False
        except ApiError as error:
            self.refusal = error

    async def finish(self):
        self.stop.set()
        await self.task


async def test_who_fits_goes_at_once():
    turns = Turns(2, 10.0)
    async with turns.take(50) as first, turns.take(0, [("team:a", 1)]):
        assert (turns.running, turns.waiting, first.waited_s) == (2, 0, 0.0)
    assert turns.running == 0


async def test_who_waits_is_counted_by_class():
    turns = Turns(1, 10.0)
    async with turns.take(50):
        line = [turns.take(0, caller=Caller(class_=one)) for one in ("batch", "batch", "internal")]
        waiting = [asyncio.create_task(turn.begin()) for turn in line]
        await settle_down()
        assert turns.waiting_by_class() == {"batch": 2, "internal": 1, "production": 0}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert set(turns.waiting_by_class().values()) == {0}


async def test_the_highest_priority_first_and_in_order_of_arrival_within_it():
    now = itertools.count(0, 0.001)
    turns = Turns(1, 10.0, monotonic=lambda: next(now))
    holder = Client(turns)
    await settle_down()
    waiting = [
        Client(turns, priority, name=name)
        for priority, name in ((10, "c"), (90, "a"), (50, "b"), (90, "a2"), (10, "c2"))
    ]
    await settle_down()
    assert turns.waiting == 5
    served = []
    await holder.finish()
    for _ in waiting:
        await settle_down()
        (going,) = [client for client in waiting if client.holding]
        served.append(going.name)
        await going.finish()
    assert served == ["a", "a2", "b", "c", "c2"]
    assert (turns.running, turns.waiting) == (0, 0)
    assert all(client.turn.waited_s > 0 for client in waiting)


async def test_who_has_waited_goes_before_the_head_start_of_others():
    time = [0.0]
    turns = Turns(1, 10.0, monotonic=lambda: time[0])
    holder = Client(turns)
    await settle_down()
    patient = Client(turns, priority=0)
    await settle_down()
    time[0] = 5.01
    important = Client(turns, priority=100)
    await settle_down()
    await holder.finish()
    await settle_down()
    assert (patient.holding, important.holding) == (True, False)
    await patient.finish()
    await important.finish()


def test_standing_is_arrival_less_a_head_start():
    assert standing(0, 3.0, 10.0) == 3.0
    assert standing(100, 3.0, 10.0) == -2.0
    assert standing(0, 0.0, 10.0) < standing(100, 5.01, 10.0)
    assert standing(0, 0.0, 10.0) > standing(100, 4.99, 10.0)
    assert standing(50, 1.0, 10.0) < standing(50, 1.1, 10.0)


@pytest.mark.parametrize(
    ("waiting", "parallel", "turn_s", "seconds"),
    [(0, 128, 0.0, 1), (9, 1, 2.0, 20), (99, 10, 1.0, 10), (1000, 1, 60.0, 60)],
)
def test_when_to_come_again(waiting, parallel, turn_s, seconds):
    assert retry_after(waiting, parallel, turn_s) == seconds


def test_each_replica_has_its_share_and_at_least_one():
    scopes = [
        ("team:a", Limits(max_parallel_requests=9)),
        ("key:k", Limits(max_parallel_requests=1)),
        ("endpoint:e", Limits()),
    ]
    assert bounds(scopes, 1) == [("team:a", 9), ("key:k", 1)]
    assert bounds(scopes, 4) == [("team:a", 2), ("key:k", 1)]


async def test_a_scope_at_its_limit_does_not_hold_up_the_others():
    turns = Turns(3, 10.0)
    holder = Client(turns, scopes=[("team:a", 1)])
    await settle_down()
    blocked = Client(turns, 100, [("team:a", 1)])
    await settle_down()
    free = Client(turns, 0, [("team:b", 1)])
    await settle_down()
    assert (blocked.holding, free.holding) == (False, True)
    also_blocked = Client(turns, 0, [("team:b", 1)])
    await settle_down()
    await holder.finish()
    await settle_down()
    assert (blocked.holding, also_blocked.holding) == (True, False)
    for client in (blocked, free, also_blocked):
        await client.finish()
    assert not turns._held


async def test_a_free_turn_passes_over_those_whose_scope_is_full():
    turns = Turns(2, 10.0)
    long, short = Client(turns, scopes=[("team:a", 1)]), Client(turns)
    await settle_down()
    blocked, free = Client(turns, 100, [("team:a", 1)]), Client(turns, 0)
    await settle_down()
    await short.finish()
    await settle_down()
    assert (blocked.holding, free.holding) == (False, True)
    for client in (long, blocked, free):
        await client.finish()


async def test_nobody_waits_for_ever():
    turns = Turns(1, 0.01)
    holder = Client(turns)
    await settle_down()
    late = Client(turns)
    await late.task
    assert (late.refusal.status, late.refusal.code) == (429, "max_parallel_requests")
    assert int(late.refusal.headers["Retry-After"]) >= 1
    assert "gateway.max_queue_s" in late.refusal.message
    await holder.finish()
    assert (turns.running, turns.waiting) == (0, 0)


async def test_without_a_queue_what_does_not_fit_is_refused():
    turns = Turns(1, 0.0)
    async with turns.take(0):
        with pytest.raises(ApiError, match="none may wait"):
            await turns.take(100).begin()
    await turns.take(0).begin()


async def test_a_refusal_names_the_bound_that_is_in_the_way():
    turns = Turns(5, 0.01)
    holder = Client(turns, scopes=[("team:a", 9), ("key:k", 1)])
    await settle_down()
    with pytest.raises(ApiError, match="key:k has 1 requests in progress"):
        await turns.take(50, [("team:a", 9), ("key:k", 1)]).begin()
    await holder.finish()


async def test_a_full_line_sheds_the_lowest_priority_first():
    turns = Turns(1, 10.0, max_waiting=3)
    holder = Client(turns)
    await settle_down()
    low, lower_late, high = Client(turns, 20), Client(turns, 20), Client(turns, 80)
    await settle_down()
    refused = Client(turns, 20)
    await refused.task
    assert "3 requests wait already" in refused.refusal.message
    important = Client(turns, 60)
    await lower_late.task
    assert "class or priority" in lower_late.refusal.message
    assert turns.waiting == 3
    for client in (holder, high, important, low):
        await settle_down()
        assert client.holding
        await client.finish()


async def test_leaving_while_holding_or_waiting_gives_everything_back():
    turns = Turns(1, 10.0)
    clients = [Client(turns, scopes=[("team:a", 5)]) for _ in range(4)]
    await settle_down()
    clients[1].task.cancel()
    clients[0].task.cancel()
    await settle_down()
    assert [client.holding for client in clients] == [False, False, True, False]
    for client in clients[2:]:
        await client.finish()
    assert (turns.running, turns.waiting, turns._held) == (0, 0, {})


async def test_a_turn_granted_to_a_client_that_just_left_goes_to_the_next():
    turns = Turns(1, 10.0)
    holder = turns.take(50)
    await holder.begin()
    leaving, next_one = Client(turns, 90), Client(turns, 10)
    await settle_down()
    holder.end()
    leaving.task.cancel()
    await settle_down()
    assert next_one.holding
    await next_one.finish()
    holder.end()
    assert (turns.running, turns.waiting) == (0, 0)


async def test_a_client_cancelled_before_its_turn_comes_free_in_the_same_tick():
    turns = Turns(1, 10.0)
    holder = turns.take(50)
    await holder.begin()
    leaving, next_one = Client(turns, 90), Client(turns, 10)
    await settle_down()
    leaving.task.cancel()
    holder.end()
    await settle_down()
    assert next_one.holding
    await next_one.finish()
    assert (turns.running, turns.waiting) == (0, 0)


SCOPES = {"team:a": 2, "team:b": 1, "key:k": 3}

actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"),
            st.integers(0, 100),
            st.sets(st.sampled_from(sorted(SCOPES)), max_size=3),
        ),
        st.tuples(st.just("finish"), st.integers(0, 30), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
        st.tuples(st.just("tick"), st.integers(1, 3), st.none()),
    ),
    max_size=60,
)


@given(actions, st.integers(1, 4), st.integers(1, 8))
def test_bounds_hold_and_nothing_leaks_whatever_clients_do(actions, parallel, max_waiting):
    async def run():
        time = itertools.count(0, 0.01)
        turns = Turns(parallel, 10_000.0, max_waiting, monotonic=lambda: next(time))
        clients = []
        for act, number, names in actions:
            if act == "arrive":
                scopes = [(name, SCOPES[name]) for name in sorted(names)]
                clients.append(Client(turns, number, scopes))
            elif act == "tick":
                for _ in range(number):
                    await asyncio.sleep(0)
            elif clients:
                client = clients[number % len(clients)]
                client.stop.set() if act == "finish" else client.task.cancel()
            check(turns, clients, parallel, max_waiting)
        await settle_down()
        check(turns, clients, parallel, max_waiting)
        for turn in turns._line:
            assert not turns._fits(turn), "somebody who fits is kept waiting"
        for client in clients:
            client.stop.set()
        ended = await asyncio.gather(*(c.task for c in clients), return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ended)
        assert (turns.running, turns.waiting, turns._held) == (0, 0, {})

    asyncio.run(run())


def check(turns, clients, parallel, max_waiting):
    holding = [client for client in clients if client.holding]
    assert len(holding) <= turns.running <= parallel
    assert turns.waiting <= max_waiting
    for scope, limit in SCOPES.items():
        held = sum(scope in dict(client.scopes) for client in holding)
        assert held <= turns._held.get(scope, 0) <= limit


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=12))
def test_the_line_is_served_by_standing_among_those_who_fit(arrivals):
    async def run():
        time = itertools.count(0, 0.5)
        turns = Turns(1, 100.0, monotonic=lambda: next(time))
        holder = turns.take(50)
        await holder.begin()
        clients = []
        for priority, in_scope in arrivals:
            scopes = [("team:a", 1)] if in_scope else []
            clients.append(Client(turns, priority, scopes, name=len(clients)))
            await settle_down()
        expected = [client.name for client in sorted(clients, key=lambda c: c.turn.order)]
        order = [client.turn.order for client in clients]
        assert len(set(order)) == len(order)
        served = []
        holder.end()
        for _ in clients:
            await settle_down()
            (going,) = [client for client in clients if client.holding]
            served.append(going.name)
            await going.finish()
        assert served == expected

    asyncio.run(run())

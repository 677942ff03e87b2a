"""Flights: one computation for identical requests, whoever comes late, is slow, or leaves."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.gateway.errors import ApiError
from factory.gateway.flights import FlightCancelled, Flights, Landed, weight


async def ticks(number):
    for _ in range(number):
        await asyncio.sleep(0)


class Work:
    """A computation that counts how often it begins and notes how it ends."""

    def __init__(self, items=(), result="result", error=None, gate=None):
        self.items, self._result, self.error, self.gate = items, result, error, gate
        self.begun, self.yielded, self.endings = 0, 0, []

    async def _wait(self):
        if self.gate is None:
            await asyncio.sleep(0)
        else:
            await self.gate.wait()

    async def whole(self):
        self.begun += 1
        try:
            await self._wait()
            if self.error:
                raise self.error
            self.endings.append("done")
            return self._result
        except asyncio.CancelledError:
            self.endings.append("cancelled")
            raise

    async def stream(self):
        self.begun += 1
        ending = "closed"
        try:
            for item in self.items:
                self.yielded += 1
                yield item
                await self._wait()
            if self.error:
                raise self.error
            yield Landed(self._result)
            ending = "done"
        except Exception:
            ending = "failed"
            raise
        finally:
            await asyncio.sleep(0)
            self.endings.append(ending)


async def listen(flights, start, key=b"k"):
    with flights.join(key, start) as boarding:
        items = [item async for item in boarding]
        return items, await boarding.result()


async def test_identical_requests_share_one_computation():
    flights, work = Flights(), Work()
    with flights.join(b"k", work.whole) as first, flights.join(b"k", work.whole) as second:
        assert (first.leader, second.leader) == (True, False)
        assert b"k" in flights
        assert await asyncio.gather(first.result(), second.result()) == ["result", "result"]
    assert (work.begun, b"k" in flights) == (1, False)
    await flights.drain()
    assert len(flights) == 0


async def test_other_keys_and_later_requests_compute_for_themselves():
    flights, work = Flights(), Work()
    await asyncio.gather(*(listen(flights, work.whole, key) for key in (b"a", b"b", b"a")))
    assert work.begun == 2
    await listen(flights, work.whole, b"a")
    assert work.begun == 3


async def test_who_joins_late_gets_the_stream_from_the_beginning():
    flights, gate = Flights(), asyncio.Event()
    work = Work("abc", gate=gate)
    with flights.join(b"k", work.stream) as first:
        assert await anext(first) == "a"
        late = asyncio.create_task(listen(flights, work.stream))
        await ticks(3)
        gate.set()
        assert [item async for item in first] == ["b", "c"]
        assert await late == (["a", "b", "c"], "result")
    assert work.begun == 1


async def test_a_whole_answer_can_be_had_from_a_stream_and_the_reverse():
    flights, work = Flights(), Work("abc")
    with flights.join(b"k", work.stream), flights.join(b"k", work.whole) as whole:
        assert await whole.result() == "result"
    with flights.join(b"k", work.whole), flights.join(b"k", work.stream) as stream:
        assert [item async for item in stream] == []
        assert await stream.result() == "result"


async def test_a_slow_passenger_holds_up_nobody():
    flights, work = Flights(), Work("abcdef")
    with flights.join(b"k", work.stream) as slow:
        assert await anext(slow) == "a"
        assert await listen(flights, work.stream) == (list("abcdef"), "result")
        assert work.endings == ["done"]
        assert [item async for item in slow] == list("bcdef")
        assert await slow.result() == "result"


async def test_an_error_reaches_everybody_after_the_items_before_it():
    flights = Flights()
    work = Work("ab", error=ValueError("broken"))
    seen = []

    async def hear():
        with flights.join(b"k", work.stream) as boarding:
            with pytest.raises(ValueError, match="broken"):
                seen.extend([item async for item in boarding])
            with pytest.raises(ValueError, match="broken"):
                await boarding.result()

    await asyncio.gather(hear(), hear())
    with flights.join(b"k", work.stream) as boarding:
        assert [await anext(boarding), await anext(boarding)] == ["a", "b"]
        with pytest.raises(ValueError, match="broken"):
            await anext(boarding)


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_an_error_before_the_first_item(form):
    flights, work = Flights(), Work(error=ValueError("at once"))
    with flights.join(b"k", getattr(work, form)) as boarding, pytest.raises(ValueError, match="at"):
        await anext(boarding)


async def test_a_start_that_fails_is_an_error_like_any_other():
    def start():
        raise ValueError("no model")

    with Flights().join(b"k", start) as boarding, pytest.raises(ValueError, match="no model"):
        await boarding.result()


async def test_everybody_gets_an_error_of_his_own():
    flights = Flights()
    error = ApiError(503, "service_unavailable", "down", headers={"Retry-After": "2"})
    work = Work(error=error)
    with flights.join(b"k", work.whole) as first, flights.join(b"k", work.whole) as second:
        caught = await asyncio.gather(first.result(), second.result(), return_exceptions=True)
    assert caught[0] is not caught[1]
    for one in caught:
        assert isinstance(one, ApiError)
        assert (one.status, one.code, str(one)) == (503, "service_unavailable", "down")
        assert one.headers == {"Retry-After": "2"}
        assert one.__cause__ is error


async def test_an_error_that_cannot_be_copied_is_passed_on_as_it_is():
    class Fixed(Exception):
        def __new__(cls):
            return super().__new__(cls)

        def __init__(self):
            super().__init__("fixed")

    work = Work(error=Fixed())
    with Flights().join(b"k", work.whole) as boarding, pytest.raises(Fixed) as caught:
        await boarding.result()
    assert caught.value is work.error


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_the_leader_leaves_and_the_others_get_their_answer(form):
    flights, gate = Flights(), asyncio.Event()
    work = Work("ab", gate=gate)
    leader = asyncio.create_task(listen(flights, getattr(work, form)))
    await ticks(2)
    follower = asyncio.create_task(listen(flights, getattr(work, form)))
    await ticks(2)
    leader.cancel()
    await ticks(2)
    gate.set()
    items, result = await follower
    assert (items, result) == (["a", "b"] if form == "stream" else [], "result")
    assert (work.begun, work.endings) == (1, ["done"])
    assert leader.cancelled()


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_when_the_last_one_leaves_the_computation_is_closed(form):
    flights = Flights()
    work = Work("ab", gate=asyncio.Event())
    both = [asyncio.create_task(listen(flights, getattr(work, form))) for _ in range(2)]
    await ticks(3)
    both[0].cancel()
    await ticks(3)
    assert work.endings == []
    both[1].cancel()
    await ticks(1)
    assert b"k" not in flights, "nobody may join what is being stopped"
    await flights.drain()
    assert work.endings == ["closed" if form == "stream" else "cancelled"]
    assert len(flights) == 0


async def test_a_computation_that_everybody_left_at_once_still_accounts_for_itself():
    flights, work = Flights(), Work("ab", gate=asyncio.Event())
    flights.join(b"k", work.stream).leave()
    await flights.drain()
    assert (work.begun, work.endings) == (1, ["closed"])


async def test_whoever_comes_after_everybody_left_begins_anew():
    flights, work = Flights(), Work()
    gone = flights.join(b"k", work.whole)
    gone.leave()
    gone.leave()
    assert await listen(flights, work.whole) == ([], "result")
    assert work.begun == 2
    await flights.drain()


async def test_a_long_stream_takes_nobody_more_on_board():
    flights = Flights(max_bytes=3)
    gate = asyncio.Event()
    work = Work(["aa", "bb", "cc"])
    with flights.join(b"k", work.stream) as first:
        assert await anext(first) == "aa"
        with flights.join(b"k", work.stream) as second:
            assert not second.leader
            assert await anext(first) == "bb"
            other = Work(["xx"], gate=gate)
            with flights.join(b"k", other.stream) as third:
                assert third.leader
                assert [item async for item in second] == ["aa", "bb", "cc"]
                gate.set()
                assert await anext(third) == "xx"
                assert await third.result() == "result"
    assert (weight(b"abc"), weight({"a": 1})) == (3, 1000)


async def test_a_stream_without_a_result_is_a_failure():
    async def start():
        yield "a"

    with Flights().join(b"k", start) as boarding:
        assert await anext(boarding) == "a"
        with pytest.raises(RuntimeError, match="without Landed"):
            await boarding.result()


async def test_drain_waits_and_after_its_grace_cancels():
    flights = Flights()
    quick, stuck = Work("ab"), Work("ab", gate=asyncio.Event())
    with flights.join(b"q", quick.stream), flights.join(b"s", stuck.stream) as boarding:
        await flights.drain(grace_s=0.01)
        assert (quick.endings, stuck.endings) == (["done"], ["closed"])
        assert await anext(boarding) == "a"
        with pytest.raises(FlightCancelled):
            await anext(boarding)
    await flights.drain()


def supervised(main):
    """Run `main` and fail on leaked tasks and on exceptions that nobody retrieved."""
    complaints = []

    async def run():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await main()
        await ticks(2)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    gc.collect(1)
    assert complaints == []


@pytest.mark.parametrize("form", ["whole", "stream"])
@pytest.mark.parametrize("fails", [False, True])
def test_cancelling_one_at_any_point_hurts_no_other(form, fails):
    async def at(point, who):
        flights = Flights()
        work = Work("abc", error=ValueError("broken") if fails else None)
        crowd = [asyncio.create_task(listen(flights, getattr(work, form))) for _ in range(3)]
        await ticks(point)
        crowd[who].cancel()
        ended = await asyncio.gather(*crowd, return_exceptions=True)
        expected = (list("abc") if form == "stream" else [], "result")
        for place, end in enumerate(ended):
            if place == who and isinstance(end, asyncio.CancelledError):
                continue
            assert isinstance(end, ValueError) if fails else end == expected
        await flights.drain()
        assert (work.begun, len(work.endings)) in {(1, 1), (1, 0 if fails else 1)}

    async def everywhere():
        for point in range(14):
            for who in range(3):
                await at(point, who)

    supervised(everywhere)


passengers = st.lists(
    st.tuples(
        st.integers(0, 6),  # ticks before it joins
        st.integers(0, 3),  # ticks between two items it takes
        st.none() | st.integers(0, 25),  # ticks until it is cancelled
        st.booleans(),  # wants the whole answer only
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=300, deadline=None)
@given(
    passengers,
    st.integers(0, 5),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([2, 10**6]),
)
def test_any_interleaving_gives_everybody_the_whole_answer(crowd, length, pace, fails, max_bytes):
    wanted = [str(number) for number in range(length)]

    async def main():
        flights = Flights(max_bytes=max_bytes)
        begun, ended, aboard = [], [], 0

        async def compute():
            begun.append(True)
            try:
                for item in wanted:
                    await ticks(pace)
                    yield item
                await ticks(pace)
                if fails:
                    raise ValueError("broken")
                yield Landed("result")
            finally:
                ended.append(True)
                await asyncio.sleep(0)

        async def ride(join_after, slowness, whole):
            nonlocal aboard
            await ticks(join_after)
            expected_leader = b"k" not in flights
            with flights.join(b"k", compute) as boarding:
                assert boarding.leader == expected_leader
                aboard += 1
                items = []
                try:
                    if not whole:
                        async for item in boarding:
                            items.append(item)
                            assert items == wanted[: len(items)]
                            await ticks(slowness)
                    result = await boarding.result()
                except ValueError:
                    assert fails
                    assert whole or items == wanted
                else:
                    assert not fails
                    assert result == "result"
                    assert whole or items == wanted

        async def cancel(task, after):
            await ticks(after)
            task.cancel()

        rides, cancels = [], []
        for join_after, slowness, cancel_after, whole in crowd:
            task = asyncio.create_task(ride(join_after, slowness, whole))
            rides.append((task, cancel_after))
            if cancel_after is not None:
                cancels.append(asyncio.create_task(cancel(task, cancel_after)))
        outcomes = await asyncio.gather(*(task for task, _ in rides), return_exceptions=True)
        await asyncio.gather(*cancels)
        for outcome, (_, cancel_after) in zip(outcomes, rides, strict=True):
            if outcome is not None:
                assert isinstance(outcome, asyncio.CancelledError), outcome
                assert cancel_after is not None
        await flights.drain()
        assert len(begun) == len(ended)
        assert bool(begun) == bool(aboard)
        assert (len(flights), b"k" in flights) == (0, False)

    logging.disable(logging.ERROR)
    try:
        supervised(main)
    finally:
        logging.disable(logging.NOTSET)

"""Off-peak windows over clock changes, and what follows an attempt."""

from __future__ import annotations

from datetime import UTC, datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.cluster.queue.offpeak import opens_at
from factory.cluster.queue.retries import Ending, judge
from factory.config import OffPeak, Retries

NIGHT = OffPeak(time_zone="Europe/Berlin", start=time(22), end=time(6))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-11-24T20:00", "2026-11-24T21:00"),  # 22:00 in winter
        ("2026-07-01T12:00", "2026-07-01T20:00"),  # 22:00 in summer
        ("2026-11-24T23:00", "2026-11-24T23:00"),  # open
        ("2026-11-25T04:59", "2026-11-25T04:59"),  # open until 6:00
        ("2026-11-25T05:00", "2026-11-25T21:00"),  # closed at 6:00
    ],
)
def test_windows_keep_local_time(now: str, opens: str) -> None:
    assert opens_at(NIGHT, utc(now)) == utc(opens)


def test_days_are_those_on_which_it_opens() -> None:
    weekend = OffPeak(days=("sat",), start=time(22), end=time(6))
    assert opens_at(weekend, utc("2026-11-24T12:00")) == utc("2026-11-28T22:00")
    assert opens_at(weekend, utc("2026-11-29T03:00")) == utc("2026-11-29T03:00")


def test_an_unknown_zone_and_an_empty_window_are_refused() -> None:
    with pytest.raises(ValidationError, match="no IANA time zone"):
        OffPeak(time_zone="Mars/Olympus", start=time(1), end=time(2))
    with pytest.raises(ValidationError, match="the same"):
        OffPeak(start=time(1), end=time(1))


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)), st.times(), st.times())
def test_it_opens_within_a_day_or_two_whatever_the_clock_does(
    now: datetime, start: time, end: time
) -> None:
    if start.replace(fold=0) == end.replace(fold=0):
        return
    window = OffPeak(time_zone="America/New_York", start=start, end=end)
    moment = now.replace(tzinfo=UTC)
    opening = opens_at(window, moment)
    assert moment <= opening
    assert (opening - moment).total_seconds() <= 49 * 3600
    assert opens_at(window, opening) == opening


def test_failures_back_off_and_end_with_a_diagnosis() -> None:
    retries = Retries(max_attempts=3, backoff_s=10, max_backoff_s=15)
    ending = Ending("FAILED", 1, output="…\nRuntimeError: no luck\n")
    first, second, third = (judge(ending, failures, 0, retries) for failures in (0, 1, 2))
    assert (first.next, first.wait_s, second.wait_s) == ("retry", 10, 15)
    assert third.next == "dead"
    assert third.diagnosis == "failed 3 times, last: exit code 1: RuntimeError: no luck"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ModuleNotFoundError: No module named 'nothing'", "the module nothing does not exist"),
        ("x.py: error: unrecognized arguments: --what", "wrong usage: unrecognized arguments"),
    ],
)
def test_what_comes_again_is_not_tried_again(output: str, sentence: str) -> None:
    verdict = judge(Ending("FAILED", 1, output=output), 0, 0, Retries())
    assert verdict.next == "dead"
    assert sentence in verdict.diagnosis


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending("FAILED", 137), "out of memory|want of memory"),
        (Ending("FAILED", 1, output="torch.OutOfMemoryError: CUDA out of memory."), "batch size"),
        (Ending("FAILED", 1, output="OSError: [Errno 28] No space left on device"), "disk is full"),
        (Ending("FAILED", None, "Failed to schedule supervisor actor"), "supervisor"),
    ],
)
def test_known_causes_are_named(ending: Ending, words: str) -> None:
    import re

    assert re.search(words, judge(ending, 0, 0, Retries()).diagnosis)


def test_interruptions_are_no_failures_but_bounded_too() -> None:
    retries = Retries(max_interruptions=2)
    preempted = judge(Ending("STOPPED", asked="preempt"), 2, 1, retries, apart_s=5)
    assert (preempted.next, preempted.failed, preempted.wait_s) == ("retry", False, 5)
    assert judge(Ending("LOST"), 0, 2, retries).next == "dead"
    assert judge(Ending("STOPPED", asked="cancel"), 0, 0, retries).next == "cancelled"
    assert judge(Ending("SUCCEEDED", 0), 5, 5, retries).next == "done"

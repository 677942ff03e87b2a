"""When a spot zone has capacity: what the platform has seen, and what it expects from that.

    watch = Watch(tick_s=195, start_hour=0, up={"a": ups, "b": ups}, regions={"a": "r", "b": "r"})
    forecast = learn(watch, ["a"])
    forecast.transitions[14]           # chances from state to state at two in the afternoon

The platform watches the zones of its pools all the time, whether a job runs or not. A zone's state
is whether it is up, for how long it has been so, and the mood: half its own last day, half its
neighbours at this moment. Two logistic regressions give the chance that it goes down, or comes up,
within a tick, from age, mood and hour of the day; a zone's own coefficients are drawn towards those
of all zones, as far as it has little history of its own (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AGES = 8
"""Steps of age, spaced evenly in its logarithm."""
LONGEST_AGE_S = 25_000.0
"""Beyond this age (7 h) a state does not age any further."""
MOODS = (0.25, 0.5, 0.75)
"""Borders between steps of mood."""
LEVELS = len(MOODS) + 1
STATES = 2 * AGES * LEVELS
"""States of a zone: the first half down, the second half up."""
UP: NDArray[np.bool_] = np.arange(STATES) >= AGES * LEVELS
DAY_S = 86_400.0

_RIDGE_OF_ALL = 3.0
_RIDGE_OF_ONE = 100.0
_START = -3.0
"""Log-odds of a change within a tick before anything was seen."""


@dataclass(frozen=True)
class Watch:
    """What was seen of several zones: 1 where a node could be had in that tick, 0 where not."""

    tick_s: float
    start_hour: float
    """Hour of the day (UTC) in which the first tick began."""
    up: Mapping[str, NDArray[np.int8]]
    """By zone, oldest first; all of one length."""
    regions: Mapping[str, str]
    """Region by zone: zones of one region come and go together."""

    def __post_init__(self) -> None:
        if self.tick_s <= 0:
            raise ValueError("tick_s must be positive")
        if len({len(series) for series in self.up.values()}) != 1:
            raise ValueError("the zones of a watch must be seen for equally many ticks, at least 1")
        if self.ticks == 0:
            raise ValueError("nothing has been seen of the zones yet; a watch needs one tick")

    @property
    def ticks(self) -> int:
        """How many ticks were seen."""
        return len(next(iter(self.up.values())))

    def until(self, tick: int) -> Watch:
        """The same, as it was known when `tick` ticks had been seen."""
        return Watch(
            self.tick_s,
            self.start_hour,
            {zone: series[:tick] for zone, series in self.up.items()},
            self.regions,
        )

    def every(self, step: int) -> Watch:
        """The same on a grid `step` times as coarse; the newest tick is kept."""
        if step == 1:
            return self
        first = (self.ticks - 1) % step
        return Watch(
            self.tick_s * step,
            (self.start_hour + first * self.tick_s / 3600) % 24,
            {zone: series[first::step] for zone, series in self.up.items()},
            self.regions,
        )

    def hours(self, first: int, count: int) -> Ints:
        """Hour of the day of `count` ticks from tick `first`."""
        at = self.start_hour + (first + np.arange(count)) * self.tick_s / 3600
        return np.asarray(at % 24, dtype=np.int64)

    def series(self, zones: Sequence[str], step: int = 1) -> Series:
        """The series of a zone, or of several as if they were one that is up while any is.

        `step`: ticks in one tick of the model that is to read the states.
        """
        ups = np.stack([self.up[zone] for zone in zones])
        if len(zones) > 1:
            company = ups.mean(axis=0)
        else:
            region = self.regions.get(zones[0])
            near = [z for z in self.up if z != zones[0] and self.regions.get(z) == region]
            company = np.stack([self.up[z] for z in near]).mean(axis=0) if near else None
        return _series(ups.max(axis=0).astype(np.int64), company, self, step)


@dataclass(frozen=True)
class Series:
    """One zone over time, as the model sees it; arrays by tick."""

    up: Ints
    age: Ints
    """Ticks since the last change, from 1."""
    mood: Floats
    state: Ints
    """0 to STATES - 1."""
    hour: Floats


def _edges(tick_s: float) -> Ints:
    """Lowest age in ticks of each step of age."""
    longest = max(LONGEST_AGE_S / tick_s, AGES)
    found = np.geomspace(1, longest, AGES).round().astype(np.int64)
    return np.asarray(np.maximum(found, np.arange(1, AGES + 1)), dtype=np.int64)


def _series(up: Ints, company: Floats | None, watch: Watch, ticks: int) -> Series:
    count = len(up)
    tick = np.arange(count)
    changed = np.concatenate([[True], up[1:] != up[:-1]])
    age = tick - np.maximum.accumulate(np.where(changed, tick, 0)) + 1
    day = max(1, round(DAY_S / watch.tick_s))
    prior = max(1.0, day / 11)
    seen = np.concatenate([[0], np.cumsum(up)])
    low = np.maximum(0, tick + 1 - day)
    mood = (seen[tick + 1] - seen[low] + prior / 2) / (tick + 1 - low + prior)
    if company is not None:
        mood = (mood + company) / 2
    coarse = (age + ticks - 1) // ticks
    step = np.searchsorted(_edges(watch.tick_s * ticks), coarse, side="right") - 1
    state = (up * AGES + step) * LEVELS + np.searchsorted(MOODS, mood)
    hour = (watch.start_hour + tick * watch.tick_s / 3600) % 24
    return Series(up, age, mood, state, hour)


@dataclass(frozen=True)
class Forecast:
    """What is expected of a zone, or of several as one."""

    transitions: Floats
    """[hour, from, to], each row adds up to 1."""

    def life(self, hours: Ints) -> Floats:
        """Expected ticks a zone stays up, counted at most to the end of `hours`: [tick, state]."""
        found = np.zeros((len(hours), STATES))
        after = np.zeros(STATES)
        for at in range(len(hours) - 1, -1, -1):
            after = np.where(UP, 1 + self.transitions[hours[at]] @ after, 0)
            found[at] = after
        return found


def learn(watch: Watch, zones: Sequence[str]) -> Forecast:
    """What the watch tells about `zones`: one zone, or several as one that is up while any is."""
    target = watch.series(zones)
    everything = [watch.series([zone]) for zone in watch.up] if len(zones) == 1 else [target]
    coefficients = []
    for up in (0, 1):
        rows = [_rows(series, up) for series in everything]
        start = np.zeros(rows[0][0].shape[1])
        start[0] = _START
        design = np.concatenate([x for x, _ in rows])
        changes = np.concatenate([y for _, y in rows])
        common = _fit(design, changes, start, np.full(len(start), _RIDGE_OF_ALL))
        ridge = np.full(len(start), _RIDGE_OF_ONE)
        ridge[0] = 2.0  # how often a zone changes is its own; how that depends on things is shared
        coefficients.append(_fit(*_rows(target, up), common, ridge))
    return Forecast(_transitions(coefficients, _mood_changes(everything), watch))


def _rows(series: Series, up: int) -> tuple[Floats, Floats]:
    at = np.flatnonzero(series.up[:-1] == up)
    design = _design(series.age[at], series.mood[at], series.hour[at])
    return design, (series.up[at + 1] != up).astype(np.float64)


def _design(age: Floats | Ints, mood: Floats, hour: Floats) -> Floats:
    log = np.log(age)
    turn = 2 * np.pi * hour / 24
    columns = [np.ones(len(log)), log, log * log / 4, age <= 1, 2 * mood - 1]
    columns += [np.sin(turn), np.cos(turn), np.sin(2 * turn) / 2, np.cos(2 * turn) / 2]
    return np.stack(columns, axis=1).astype(np.float64)


def _fit(design: Floats, changes: Floats, centre: Floats, ridge: Floats) -> Floats:
    """Logistic regression drawn towards `centre`, by Newton's method."""
    found = centre.copy()
    for _ in range(15):
        chance = _chance(design, found)
        slope = design.T @ (changes - chance) - ridge * (found - centre)
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        step = np.clip(np.linalg.solve(curve, slope), -2, 2)
        found = found + step
        if np.abs(step).max() < 1e-4:
            break
    return found


def _chance(design: Floats, coefficients: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(design @ coefficients, -30, 30))))


def _mood_changes(everything: Sequence[Series]) -> Floats:
    """Chances from step to step of mood, while down and while up: [up, from, to]."""
    counts = np.zeros((2, LEVELS, LEVELS))
    for series in everything:
        level = np.searchsorted(MOODS, series.mood)
        np.add.at(counts, (series.up[:-1], level[:-1], level[1:]), 1)
    counts += 20 * np.eye(LEVELS)
    return np.asarray(counts / counts.sum(axis=2, keepdims=True))


def _transitions(coefficients: Sequence[Floats], moods: Floats, watch: Watch) -> Floats:
    """From the two regressions to the chances between states, hour by hour: [24, from, to]."""
    edges = _edges(watch.tick_s)
    older = np.append(1 / np.diff(edges), 0.0)
    middle = np.append((edges[:-1] + edges[1:] - 1) / 2, edges[-1] * 1.8)
    borders = np.array([0.0, *MOODS, 1.0])
    typical = (borders[:-1] + borders[1:]) / 2
    ages, levels = np.meshgrid(middle, typical, indexing="ij")
    found = np.zeros((24, 2, AGES, LEVELS, 2, AGES, LEVELS))
    for hour in range(24):
        for up in (0, 1):
            design = _design(ages.ravel(), levels.ravel(), np.full(ages.size, hour + 0.5))
            change = _chance(design, coefficients[up]).reshape(AGES, LEVELS)
            for age in range(AGES):
                to = found[hour, up, age]
                to[:, 1 - up, 0] += change[age][:, None] * moods[up]
                stays = (1 - change[age])[:, None] * moods[up]
                to[:, up, age] += (1 - older[age]) * stays
                if older[age] > 0:
                    to[:, up, age + 1] += older[age] * stays
    return found.reshape(24, STATES, STATES)

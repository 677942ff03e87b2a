"""The cheapest way to finish in time, for every situation a job can come into: value iteration.

    plan = solve(forecast, hours, hand_over=0.01, work=443.1, overhead=3.7, ratio=3.0)
    plan.act(ticks_left=600, slack=120.0, state=17, held=IDLE, overhead_left=0.0)

Everything is counted in ticks. A situation is the time left, the slack (time left less work left),
what is held and how much of its start is still to come, and the state of the zone; the expected
cost of finishing from there, in ticks of a spot node, is computed backwards from the deadline. Work
that is missing at the deadline costs `LATE` a tick, so the plan itself keeps a distance; that no
deadline is missed is enforced outside, exactly, by `spot.decide`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from factory.cluster.spot.availability import STATES, UP, Forecast, Ints

IDLE, SPOT, ON_DEMAND = 0, 1, 2
LATE = 20.0
"""A missing tick costs this many on-demand ticks."""
WAITED = 0.01
"""A tick of waiting costs this much of a spot tick: of equal plans the one that is done first wins,
or a job with days of slack would put off its start for ever."""
_NEVER = np.float32(1e6)

Grid = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What to do in every situation, and what it is expected to cost."""

    overheads: tuple[float, ...]
    """Ticks of a start that are still to come, at each step of starting; the last is 0."""
    fresh: NDArray[np.int8]
    """[ticks left, slack, state]: what to do when nothing is held, or to change to."""
    stay: NDArray[np.bool_]
    """[ticks left, spot steps then on-demand steps, slack, state]: keep what is held."""
    costs: Grid
    """[slack, state]: expected cost of the whole job when nothing is held yet, in spot ticks."""

    def act(
        self, ticks_left: int, slack: float, state: int, held: int, overhead_left: float
    ) -> int:
        """IDLE, SPOT or ON_DEMAND for the next tick; `state` is down when spot is not there."""
        left = min(ticks_left, len(self.fresh) - 1)
        row = int(np.clip(round(slack), 0, self.fresh.shape[1] - 1))
        if held != IDLE and (held == ON_DEMAND or UP[state]):
            step = int(np.argmin([abs(o - overhead_left) for o in self.overheads]))
            if held == ON_DEMAND:
                step += len(self.overheads)
            if self.stay[left, step, row, state]:
                return held
        return int(self.fresh[left, row, state])


def solve(
    forecast: Forecast, hours: Ints, hand_over: float, work: float, overhead: float, ratio: float
) -> Plan:
    """The plan for a job of `work` ticks that must end within `len(hours)` ticks.

    `hand_over`: chance that the held zone is lost in a tick while another is up. `overhead`: ticks
    that a start takes. `ratio`: price of on-demand over spot.
    """
    ticks = len(hours)
    steps = max(1, ceil(overhead - 1e-9))
    overheads = (*(overhead - step for step in range(1, steps)), 0.0)
    late = np.float32(LATE * ratio)
    slack = np.arange(max(1, ceil(ticks - work) + 2), dtype=np.float32)
    chances = np.ascontiguousarray(forecast.transitions.transpose(0, 2, 1), dtype=np.float32)
    value = np.zeros((1 + 2 * steps, len(slack), STATES), np.float32)
    fresh = np.zeros((ticks + 1, len(slack), STATES), np.int8)
    stay = np.zeros((ticks + 1, 2 * steps, len(slack), STATES), np.bool_)

    def spend(grid: Grid, ticks_of_slack: float) -> Grid:
        """The grid as seen from the slack before: what falls below 0 is late."""
        part = np.float32(ticks_of_slack)
        if part <= 0:
            return grid
        found = np.empty_like(grid)
        found[1:] = grid[1:] * (1 - part) + grid[:-1] * part
        found[0] = grid[0] + part * late
        return found

    def run(ahead: Grid, first: int, step: int, price: float) -> Grid:
        """Cost of holding for this tick; step -1 starts anew."""
        to_come = overheads[step] if step >= 0 else overhead
        after = ahead[first + min(step + 1, steps - 1)]
        paid = np.minimum(1, work_left + to_come).astype(np.float32) * np.float32(price)
        return spend(after, min(1.0, to_come)) + paid[:, None]

    for left in range(1, ticks + 1):
        value[1 : 1 + steps, :, ~UP] = value[0][:, ~UP]  # a spot node is gone with its zone
        ahead = (value.reshape(-1, STATES) @ chances[hours[ticks - left]]).reshape(value.shape)
        if hand_over:
            ahead[1 : 1 + steps] += (ahead[0] - ahead[1 : 1 + steps]) * np.float32(hand_over)
        work_left = np.maximum(left - slack, 0)
        idle = spend(ahead[0], 1.0) + np.float32(WAITED)
        spot = run(ahead, 1, -1, 1.0)
        spot[:, ~UP] = _NEVER
        best = np.minimum(idle, spot)
        chosen = np.where(spot < idle, np.int8(SPOT), np.int8(IDLE))
        rented = run(ahead, 1 + steps, -1, ratio)
        chosen[rented < best] = ON_DEMAND
        best = np.minimum(best, rented)
        fresh[left] = chosen
        value = np.empty_like(value)
        value[0] = best
        for step in range(steps):
            kept = run(ahead, 1, step, 1.0)
            kept[:, ~UP] = _NEVER
            stay[left, step] = kept <= best
            value[1 + step] = np.minimum(kept, best)
            kept = run(ahead, 1 + steps, step, ratio)
            stay[left, steps + step] = kept <= best
            value[1 + steps + step] = np.minimum(kept, best)
        value[:, work_left <= 0] = 0
    return Plan(overheads, fresh, stay, value[0])

"""Ray Serve's default autoscaling policy under simulated time: Ray's own functions are called.

    policy = ServeDefault(target_ongoing_requests=8, min_replicas=1, max_replicas=64)

The wanted number is ongoing requests / target_ongoing_requests, the requests averaged over
`look_back_period_s` (30 s); it must be wanted for `upscale_delay_s` (30 s) or `downscale_delay_s`
(600 s) without a break before it is followed. Only the clock is ours: Ray's reads the wall. Reports
arrive at once here, in a cluster up to 10 s later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from factory.scaling.signals import Signals

if TYPE_CHECKING:
    from factory.scaling.simulation import Result


class ServeDefault:
    """`ray.serve`'s request-based policy with its default delays."""

    name = "ray_default"
    every_s = 1.0

    def __init__(
        self, *, target_ongoing_requests: float, min_replicas: int, max_replicas: int
    ) -> None:
        from ray.serve.config import AutoscalingConfig

        self.config = AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=target_ongoing_requests,
        )
        self._wanted: int | None = None
        self._memory: dict[str, Any] = {}
        self._ongoing: deque[tuple[float, float]] = deque()

    def __call__(self, signals: Signals) -> tuple[int, tuple[str, ...]]:
        """The number of replicas that Serve would set."""
        from ray.serve import autoscaling_policy as serve
        from ray.serve.config import AutoscalingContext

        ongoing = signals.running + signals.waiting + signals.queued
        self._ongoing.append((signals.now, ongoing))
        while self._ongoing[0][0] < signals.now - self.config.look_back_period_s:
            self._ongoing.popleft()
        mean = sum(many for _, many in self._ongoing) / len(self._ongoing)
        wanted = signals.ready + signals.starting if self._wanted is None else self._wanted
        context = AutoscalingContext(
            deployment_id=None,
            deployment_name="simulated",
            app_name=None,
            current_num_replicas=signals.ready,
            target_num_replicas=wanted,
            running_replicas=[],
            total_num_requests=mean,
            total_queued_requests=signals.queued,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self._memory,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=signals.now,
            config=self.config,
        )
        replicas = serve._get_cold_start_scale_up_replicas(context)
        if replicas is None:
            desired, _ = serve.replica_queue_length_autoscaling_policy(context)
            scaled = serve._apply_scaling_factors(desired, signals.ready, self.config)
            if signals.ready == 0 and scaled > 0:
                replicas = scaled
            else:
                replicas, self._memory = serve._apply_delay_logic(
                    max(0, scaled), wanted, self.config, self._memory, _now=signals.now
                )
        self._wanted = max(self.config.min_replicas, min(int(replicas), self.config.max_replicas))
        return self._wanted, (f"{mean:.1f} requests are ongoing",)


def request_targets(most: int, *, coarse: bool = False) -> list[float]:
    """Values of `target_ongoing_requests` to try for replicas that take `most` at once."""
    fine = [
        *(0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12),
        *(most * share for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    ]
    known = sorted({value for value in fine if value <= most})
    return known[1::3] if coarse else known


def tuned(tried: Mapping[float, Result], attainment: float) -> float:
    """The request target with the fewest hours that attains; else the one that attains most."""
    good = [wanted for wanted, result in tried.items() if result.attainment >= attainment]
    if good:
        return min(good, key=lambda wanted: tried[wanted].replica_hours)
    return max(tried, key=lambda wanted: tried[wanted].attainment)

"""`factory.scaling.decide` as Ray Serve's autoscaling policy.

    serve.deployment(TierEngine).options(autoscaling_config=autoscaling(target))

Serve's controller calls the policy about ten times a second, so nothing here waits. A replica
returns `ReplicaSignals(...).stats()` from `record_autoscaling_stats()`; requests that no replica
has taken are counted by the handles. Serve's own delays and factors are set to pass the decision
through unchanged: they would come on top of the policy's. Every change is logged with its reasons
and counted as metrics in Ray's own exporter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from factory.config import EndpointClass
from factory.scaling import Decision, ReplicaSignals, State, Tally, Target, decide, gather
from factory.scaling.arbitration import Claim, arbitrate

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

LOGGER = logging.getLogger("ray.serve")
ALWAYS_ONE = Target(min_replicas=1)
"""One replica that never sleeps."""

REPORT_S = 1.0
"""Seconds between two reports of a replica or handle. A sleeping deployment wakes by such a report,
so it is also the most that the first request of a sleeping endpoint loses."""
LOOK_BACK_S = 5.0
"""Seconds over which Serve averages what handles report."""
CLAIM_S = 10.0
"""Seconds after which the claim of a deployment that is not asked any more is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A deployment's part in a budget of GPUs or cores that several share."""

    budget: float
    """GPUs or cores for all of them together."""
    unit: float
    """GPUs or cores of one replica."""
    resource: str = "CPU"
    """What the budget is of, as Ray names it."""
    class_: EndpointClass
    """The foremost class among the endpoints that it answers."""
    priority: int = 1
    """Its weight among deployments of that class."""


_CLAIMS: dict[tuple[str, str], tuple[float, Claim]] = {}
"""What every deployment last wanted, and when, by resource and name. All policies run in the one
Serve controller."""


def autoscaling(
    target: Target, *, initial: int | None = None, share: Share | None = None
) -> AutoscalingConfig:
    """The configuration of a deployment that `decide` scales within `target`.

    `initial` replicas are there after a deployment; the default is the floor. With a `share` it
    gets no more than `arbitrate` grants it beside the others.
    """
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=target.min_replicas,
        max_replicas=target.max_replicas,
        initial_replicas=initial,
        metrics_interval_s=REPORT_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        upscaling_factor=1.0,
        downscaling_factor=1.0,
        policy=AutoscalingPolicy(
            policy_function="serve_apps.autoscaling:ServePolicy",
            policy_kwargs={"target": asdict(target), "share": share and asdict(share)},
        ),
    )


def replicas(target: Target, initial: int | None = 1, share: Share | None = None) -> dict[str, Any]:
    """Serve's options for how many replicas a deployment has.

    What is deployed is started once even if it may sleep, so that weights that do not load fail the
    deployment. With `initial` None the replicas of now stay.
    """
    if target.min_replicas == target.max_replicas == 1:
        return {"num_replicas": 1}
    if initial is not None:
        initial = min(max(initial, target.min_replicas), target.max_replicas)
    return {"autoscaling_config": autoscaling(target, initial=initial, share=share)}


class ServePolicy:
    """Called by Serve's controller with what it knows about one deployment."""

    def __init__(self, target: Mapping[str, Any], share: Mapping[str, Any] | None = None) -> None:
        """The fields of a `Target` and of a `Share`; policies travel as plain values."""
        self.target = Target(**target)
        self.share = Share(**share) if share else None
        self._gauge: Any = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas to have, and what to remember until the next call."""
        memory = ctx.policy_state or {}
        state: State = memory.get("state") or State()
        tally: Tally = memory.get("tally") or Tally()
        reports = latest_reports(ctx.raw_metrics or {})
        signals, tally = gather(
            tally,
            reports,
            now=float(ctx.current_time),
            ready=ctx.current_num_replicas,
            starting=max(0, ctx.target_num_replicas - ctx.current_num_replicas),
            queued=float(ctx.total_queued_requests or 0.0),
        )
        decision = self._granted(ctx, decide(signals, state, self.target))
        if decision.replicas != ctx.target_num_replicas:
            self._tell(ctx, decision)
        return decision.replicas, {"state": decision.state, "tally": tally}

    def _granted(self, ctx: AutoscalingContext, decision: Decision) -> Decision:
        """What the shared budget leaves of the decision."""
        if self.share is None:
            return decision
        now, name = float(ctx.current_time), f"{ctx.app_name}/{ctx.deployment_name}"
        claim = Claim(
            name=name,
            wanted=decision.replicas,
            floor=self.target.min_replicas,
            unit=self.share.unit,
            class_=self.share.class_,
            priority=self.share.priority,
        )
        _CLAIMS[self.share.resource, name] = (now, claim)
        living = [
            one
            for (resource, _), (when, one) in _CLAIMS.items()
            if resource == self.share.resource and now - when < CLAIM_S
        ]
        grant = arbitrate(living, budget=self.share.budget)[name]
        return replace(decision, replicas=grant.replicas, reasons=decision.reasons + grant.reasons)

    def _tell(self, ctx: AutoscalingContext, decision: Decision) -> None:
        LOGGER.info(
            "factory scales %s from %d to %d replicas: %s",
            ctx.deployment_name,
            ctx.target_num_replicas,
            decision.replicas,
            "; ".join(decision.reasons),
        )
        if self._gauge is None:
            from ray.util.metrics import Counter

            self._gauge = Counter(
                "factory_scaling_decisions",
                description="Changes of a deployment's replicas, by direction.",
                tag_keys=("deployment", "direction"),
            )
        direction = "up" if decision.replicas > ctx.target_num_replicas else "down"
        self._gauge.inc(1, tags={"deployment": ctx.deployment_name, "direction": direction})


def latest_reports(raw: Mapping[str, Mapping[Any, Any]]) -> dict[str, ReplicaSignals]:
    """The newest report of each replica, from Serve's `metric -> replica -> time series`."""
    stats: dict[str, dict[str, float]] = {}
    for metric, replicas in raw.items():
        for replica, series in replicas.items():
            if series:
                newest = series[-1]
                stats.setdefault(str(replica), {})[metric] = float(newest.value)
    return {replica: ReplicaSignals.from_stats(found) for replica, found in stats.items()}

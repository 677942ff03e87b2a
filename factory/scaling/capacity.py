"""What one replica sustains at the present prompt mix, learned from what replicas do.

    learned = Capacity().observe(busy_s=1.0, steps=12, prompt_tokens=900, generation_tokens=140)
    learned.seconds_per_request(prompt=1100, generated=200, batch=32)    # replica-seconds

Continuous batching spends its time on steps, prompt tokens and generated tokens:

    busy seconds = per_step * steps + per_prompt * prompt tokens + per_token * generated tokens

The three costs are fitted by non-negative least squares over everything seen, older observations
fading. Summed over replicas the equation stays true, so a deployment of thousands costs as much to
learn from as one of two. While nothing has been seen, a prior stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

PRIOR = (0.05, 0.0008, 0.002)
"""Seconds per step, prompt token and generated token before anything is known: a slow replica,
so that the first guess is too many replicas and not too few."""
PRIOR_WEIGHT = 1.0
"""Busy seconds that the prior is worth."""
MEMORY_S = 1200.0
"""Busy seconds per replica after which an observation counts 1/e."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Sufficient statistics of the fit: plain numbers, so it can be stored."""

    moments: tuple[float, ...] = ()
    """The upper triangle of X'X for (steps, prompt tokens, generated tokens), row by row."""
    products: tuple[float, ...] = ()
    """X'y for y = busy seconds."""
    costs: tuple[float, float, float] = PRIOR
    """Seconds per step, per prompt token, per generated token."""
    seen_s: float = 0.0
    """Busy replica-seconds behind the fit, fading."""

    def observe(
        self, *, busy_s: float, steps: float, prompt_tokens: float, generation_tokens: float
    ) -> Capacity:
        """The fit with one more observation: what was done in `busy_s` replica-seconds."""
        if busy_s <= 0 or steps <= 0 or min(prompt_tokens, generation_tokens) < 0:
            return self
        features = np.array([steps, prompt_tokens, generation_tokens]) / busy_s
        fade = float(np.exp(-1.0 / max(2.0, MEMORY_S / OBSERVATION_S)))
        moments, products = self._matrices()
        moments = moments * fade + np.outer(features, features)
        products = products * fade + features
        upper = moments[np.triu_indices(3)]
        return Capacity(
            moments=tuple(float(value) for value in upper),
            products=tuple(float(value) for value in products),
            costs=_non_negative(moments, products, self.costs),
            seen_s=self.seen_s * fade + busy_s,
        )

    def seconds_per_request(self, *, prompt: float, generated: float, batch: float) -> float:
        """Replica-seconds that one request takes of a replica with `batch` places full.

        `prompt` and `generated` are tokens. A request that generates nothing takes a step.
        """
        per_step, per_prompt, per_token = self.costs
        steps = max(1.0, generated) / max(1.0, batch)
        return max(1e-6, per_step * steps + per_prompt * prompt + per_token * generated)

    def inter_token_s(self, *, rate: float, prompt: float, generated: float) -> float:
        """Seconds between tokens on a replica that takes `rate` requests a second.

        In a steady state a step takes `per_step`, plus each running request's own token, plus the
        prompts that arrive meanwhile; solving for the step time gives per_step / (1 - u).
        """
        per_step, per_prompt, per_token = self.costs
        share = rate * (per_prompt * prompt + per_token * generated)
        return per_step / (1 - share) if share < 1 else float("inf")

    def rate_within(
        self, inter_token_s: float, *, prompt: float, generated: float, batch: float
    ) -> float:
        """Requests a second at which a replica still holds `inter_token_s`, at most its maximum."""
        per_step, per_prompt, per_token = self.costs
        most = 1 / self.seconds_per_request(prompt=prompt, generated=generated, batch=batch)
        cost = per_prompt * prompt + per_token * generated
        if per_step >= inter_token_s or cost <= 0:
            return most
        return min(most, (1 - per_step / inter_token_s) / cost)

    def _matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        moments = np.zeros((3, 3))
        if not self.moments:
            # The prior as observations of each cost on its own, at usual magnitudes.
            scales = 0.5 / np.array(PRIOR)
            moments[np.diag_indices(3)] = PRIOR_WEIGHT * scales**2 / 100
            return moments, moments @ np.array(PRIOR)
        moments[np.triu_indices(3)] = self.moments
        moments = moments + np.triu(moments, 1).T
        return moments, np.array(self.products)


OBSERVATION_S = 5.0
"""Seconds between two observations of a deployment."""


def _non_negative(
    moments: NDArray[np.float64],
    products: NDArray[np.float64],
    fallback: tuple[float, float, float],
) -> tuple[float, float, float]:
    """The non-negative least-squares solution, by trying every set of costs that are not 0.

    With three costs there are seven sets; the best feasible one is the optimum, because the
    problem is convex and its optimum is the free solution on its own set.
    """
    best: tuple[float, float, float] | None = None
    lowest = np.inf
    for size in (3, 2, 1):
        for chosen in combinations(range(3), size):
            index = np.array(chosen)
            try:
                part = np.linalg.solve(moments[np.ix_(index, index)], products[index])
            except np.linalg.LinAlgError:
                continue
            if (part < 0).any() or not np.isfinite(part).all():
                continue
            loss = float(part @ moments[np.ix_(index, index)] @ part - 2 * part @ products[index])
            if loss < lowest - 1e-12:
                full = np.zeros(3)
                full[index] = part
                lowest, best = loss, (float(full[0]), float(full[1]), float(full[2]))
        if best is not None and size == 3:
            break
    return fallback if best is None else best

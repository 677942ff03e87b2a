"""A made-up replica and made-up traffic, small enough for exact statements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from factory.scaling.profile import Profile
from factory.scaling.trace import Trace


@pytest.fixture(scope="session")
def profile() -> Profile:
    return Profile(
        model="made up",
        hardware="none",
        measured="never",
        per_step_s=0.02,
        per_sequence_s=0.002,
        per_prompt_token_s=0.0005,
        max_batch=8,
        max_ongoing=8,
        step_tokens=512,
        kv_tokens=20_000,
        startup_s=20,
        usd_per_hour=0.5,
    )


@pytest.fixture(scope="session")
def traffic() -> Callable[..., Trace]:
    """`traffic(rate, seconds, seed)`: Poisson arrivals, `rate` a number or a function of time."""

    def make(rate: object, seconds: int, seed: int = 0) -> Trace:
        random = np.random.default_rng(seed)
        times = np.arange(seconds)
        rates = np.array([rate(t) if callable(rate) else rate for t in times], dtype=float)
        arrivals = np.concatenate(
            [t + random.random(random.poisson(r)) for t, r in enumerate(rates)]
        )
        size = arrivals.size
        return Trace.of(arrivals, random.integers(50, 800, size), random.integers(5, 150, size))

    return make

"""Distribution-free tests and bounds for the mean of losses between 0 and 1.

p_value([0, 0, 1, 0], limit=0.5)       # small: the mean loss is surely at most 0.5
upper_bound([0, 0, 1, 0], level=0.05)  # with probability 0.95 the mean loss is below this
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STEPS = 60
"""Halvings of [0, 1] when a test is turned into a bound: to the last digit of a float."""


def p_value(losses: ArrayLike, limit: float) -> float:
    """The p-value of "the mean loss is above `limit`", valid for every distribution on [0, 1].

    For losses that are all 0 or 1 the exact binomial tail, whose inversion is the Clopper-Pearson
    bound; else Hoeffding-Bentkus (Bates, Angelopoulos, Lei, Malik and Jordan, "Distribution-Free,
    Risk-Controlling Prediction Sets", JACM 2021, proposition 1).
    """
    values = np.asarray(losses, dtype=np.float64)
    return _tail(len(values), float(values.sum()), _binary(values), limit)


def upper_bound(losses: ArrayLike, level: float) -> float:
    """The largest mean loss that `p_value` does not reject at `level`; 1 without data."""
    values = np.asarray(losses, dtype=np.float64)
    n, total, binary = len(values), float(values.sum()), _binary(values)
    if n == 0:
        return 1.0
    low, high = total / n, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _tail(n, total, binary, middle) > level:
            low = middle
        else:
            high = middle
    return high


def needed(loss: float, limit: float, level: float) -> float:
    """About how many requests with that mean loss certify `limit` at `level`; inf if none do.

    Exact for `loss` 0; else from the Chernoff bound, a little too many.
    """
    if not 0 < limit < 1 or loss >= limit:
        return math.inf if limit < 1 else 1
    if loss <= 0:
        return math.ceil(math.log(level) / math.log1p(-limit))
    return math.ceil(-math.log(level) / _divergence(loss, limit))


def _tail(n: int, total: float, binary: bool, limit: float) -> float:
    from scipy.special import bdtr

    if n == 0 or limit <= 0:
        return 1.0
    if limit >= 1:
        return 0.0
    if binary:
        return float(bdtr(round(total), n, limit))
    mean = min(max(total / n, 0.0), 1.0)
    hoeffding = math.exp(-n * _divergence(min(mean, limit), limit))
    # The subtraction keeps a sum that is whole but for rounding from counting one more.
    bentkus = math.e * float(bdtr(math.ceil(total - 1e-9), n, limit))
    return min(hoeffding, bentkus, 1.0)


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(a) from Bernoulli(b), 0 < b < 1."""
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def _binary(values: NDArray[np.float64]) -> bool:
    return bool(((values == 0) | (values == 1)).all())

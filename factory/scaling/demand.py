"""How many requests will arrive while a replica starts: several forecasters, the best one leads.

    demand = Demand().add(count)                # arrivals of one bin of BIN_S seconds
    forecast = demand.forecast(lead_s=60, quantile=0.9)
    forecast.rate, forecast.expert              # requests a second, "mean of 60 s with trend"

Each forecaster is the mean of some last seconds, with or without the trend of the last minutes. Its
past errors at this very lead time are known, so its forecast can be raised to any quantile of
them (split-conformal), and the forecaster whose raised forecasts have lost least (pinball loss) is
believed. Nothing is fitted beforehand, and traffic that changes its habit changes the leader.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

BIN_S = 5.0
"""Seconds of a bin of arrivals."""
BINS = 480
"""Bins remembered: 40 minutes."""
SPANS_S = (15.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds over which forecasters average."""
TREND_S = 180.0
"""Seconds over which a trend is measured."""
ERRORS = 480
"""Past errors that a forecaster is judged by: 40 minutes."""
FEWEST_ERRORS = 12
"""Fewer errors than this say nothing."""
UNJUDGED = 0.5
"""Relative error that a forecaster is taken to have until then, or that of a Poisson process."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The rate that the next minutes will hardly exceed."""

    rate: float
    """Requests a second: the wanted quantile."""
    level: float
    """Requests a second without the safety."""
    expert: str
    """Which forecaster was believed."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Arrivals by bin, the newest last. Plain numbers, so it can be stored."""

    counts: tuple[float, ...] = ()

    def add(self, count: float) -> Demand:
        """With one more bin."""
        return Demand((*self.counts, max(0.0, count))[-BINS:])

    def forecast(self, *, lead_s: float, window_s: float, quantile: float) -> Forecast:
        """The rate over the `window_s` seconds after `lead_s`, at a quantile of past errors."""
        counts = np.asarray(self.counts, dtype=float)
        if not counts.size:
            return Forecast(0.0, 0.0, "no arrivals yet")
        lead, window = max(1, round(lead_s / BIN_S)), max(1, round(window_s / BIN_S))
        sums = np.concatenate([[0.0], np.cumsum(counts)])
        poisson = _poisson_margin(sums, window, quantile)
        best: Forecast | None = None
        lowest = np.inf
        for name, values in _experts(sums, lead + window / 2):
            # values[k] was said after bin k; its truth is the mean of bins k+lead … +window.
            known = counts.size - lead - window
            said = values[max(0, known - ERRORS) : max(0, known)]
            level = max(0.0, float(values[-1]))
            if said.size < FEWEST_ERRORS:
                if best is None:
                    doubt = max(poisson, UNJUDGED * level)
                    best = Forecast(level + doubt, level, f"{name}, too new to be judged")
                continue
            first = max(0, known - ERRORS) + lead + 1
            ends = first + window + np.arange(said.size)
            truth = (sums[ends] - sums[ends - window]) / (window * BIN_S)
            errors = truth - said
            margin = float(np.quantile(errors, quantile))
            over = errors - margin
            loss = float(np.mean(np.maximum(quantile * over, (quantile - 1) * over)))
            if loss < lowest:
                lowest = loss
                best = Forecast(max(0.0, level + margin), level, name)
        assert best is not None, "there is always a forecaster"
        return best


def _experts(sums: NDArray[np.float64], ahead: float) -> list[tuple[str, NDArray[np.float64]]]:
    """Every forecaster's rates, one after each bin, for a time `ahead` bins later."""
    size = sums.size - 1
    index = np.arange(1, size + 1)

    def mean(bins: int, shift: int = 0) -> NDArray[np.float64]:
        end = np.maximum(index - shift, 0)
        start = np.maximum(end - bins, 0)
        rates: NDArray[np.float64] = (sums[end] - sums[start]) / (
            np.maximum(end - start, 1) * BIN_S
        )
        return rates

    half = round(TREND_S / BIN_S / 2)
    slope = np.where(index > 2 * half, (mean(half) - mean(half, half)) / half, 0.0)
    experts = []
    for span in SPANS_S:
        bins = round(span / BIN_S)
        level = mean(bins)
        experts.append((f"mean of {span:.0f} s", level))
        experts.append((f"mean of {span:.0f} s with trend", level + slope * (ahead + bins / 2)))
    return experts


def _poisson_margin(sums: NDArray[np.float64], window: int, quantile: float) -> float:
    size = sums.size - 1
    bins = min(size, round(60 / BIN_S))
    rate = (sums[-1] - sums[-1 - bins]) / (bins * BIN_S)
    return NormalDist().inv_cdf(quantile) * sqrt(rate / (window * BIN_S))

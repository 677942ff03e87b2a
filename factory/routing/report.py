"""A router against random mixing, the best single model and an oracle, so nobody is fooled.

report = compare(score, weak, strong)
report.rows(); plot(report, Path("router.png"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from factory.routing import metrics
from factory.routing.metrics import Curve

RECOVERED = (0.5, 0.8, 0.95)
"""Performance gaps recovered whose price in strong calls is shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """Curves of the contestants over the same held-out requests."""

    n: int
    """Requests."""
    curves: Mapping[str, Curve]
    """By name: `router` (and others that were given), `random`, `oracle`."""
    best_single: str
    """The better of always `weak` and always `strong`."""

    def figures(self, name: str) -> dict[str, float]:
        """APGR and the calls in percent for each gap of `RECOVERED`."""
        curve = self.curves[name]
        return {
            "apgr": metrics.apgr(curve),
            **{f"cpt{round(100 * x)}": metrics.cpt(curve, x) for x in RECOVERED},
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A table for people: name, APGR, CPT(50), CPT(80), CPT(95), best quality and its share."""
        out = []
        for name, curve in self.curves.items():
            figures = self.figures(name)
            best = int(np.argmax(curve.quality))
            out.append(
                (
                    name,
                    f"{figures['apgr']:.3f}",
                    *(f"{figures[f'cpt{round(100 * x)}']:.1f} %" for x in RECOVERED),
                    f"{curve.quality[best]:.3f} at {curve.share[best]:.0%}",
                )
            )
        for name, place in (("always weak", 0), ("always strong", -1)):
            curve = self.curves["random"]
            quality = f"{curve.quality[place]:.3f} at {curve.share[place]:.0%}"
            out.append((name, "", "", "", "", quality))
        return out

    def json(self) -> dict[str, Any]:
        """Plain values: the figures of each contestant, and both single models."""
        weak, strong = self.curves["random"].quality[[0, -1]].tolist()
        return {
            "n": self.n,
            "weak_quality": weak,
            "strong_quality": strong,
            "best_single": self.best_single,
            **{name: self.figures(name) for name in self.curves},
        }


COLUMNS = ("", "APGR", "CPT(50)", "CPT(80)", "CPT(95)", "best quality at strong calls")
"""Headings of `Report.rows`."""


def compare(scores: Mapping[str, ArrayLike], weak: ArrayLike, strong: ArrayLike) -> Report:
    """Compare routers by name, each with a score (n,) by which requests go to the strong tier.

    `weak` and `strong` (n,) are the qualities of both answers, in [0, 1]. Raises `RoutingError`
    without requests, or when the strong tier is no better.
    """
    curves = {name: metrics.curve_of(score, weak, strong) for name, score in scores.items()}
    curves["random"] = metrics.random_curve(weak, strong)
    curves["oracle"] = metrics.oracle_curve(weak, strong)
    low, high = curves["random"].quality[[0, -1]]
    return Report(
        n=len(np.asarray(weak)), curves=curves, best_single="strong" if high > low else "weak"
    )


def plot(report: Report, path: Path, marks: Sequence[tuple[str, float, float]] = ()) -> None:
    """A PNG of quality against the share of strong calls; `marks` are (label, share, quality)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in report.curves.items():
        dashed = "--" if name in ("random", "oracle") else "-"
        label = f"{name} (APGR {metrics.apgr(curve):.3f})"
        axes.plot(100 * curve.share, curve.quality, dashed, label=label)
    weak, strong = report.curves["random"].quality[[0, -1]]
    for label, level in (("always weak", weak), ("always strong", strong)):
        axes.axhline(level, color="0.7", linewidth=0.8)
        axes.annotate(label, (0, level), fontsize=8, color="0.4", va="bottom")
    for label, share, quality in marks:
        axes.plot([100 * share], [quality], "o", color="black", markersize=4)
        axes.annotate(label, (100 * share, quality), fontsize=8, va="top")
    axes.set_xlabel("requests sent to the strong tier (%)")
    axes.set_ylabel("share of good answers")
    axes.set_title(f"{report.n} held-out requests")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=120)

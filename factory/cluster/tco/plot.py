"""A TCO comparison as a picture: dollars by utilization, and what moves the break-even.

draw(compare(plan), Path("tco.png"))
"""

from __future__ import annotations

from pathlib import Path

from factory.cluster.errors import ClusterError
from factory.cluster.tco.comparison import Comparison, curves

_COLOURS = {"onprem": "#1b6e53", "cloud": "#c2571a", "hybrid": "#3c5a99"}
_SHOWN = 10


def draw(found: Comparison, path: Path) -> None:
    """Write a PNG or SVG. Raises `ClusterError` for another ending or a missing folder."""
    if path.suffix.lower() not in {".png", ".svg"}:
        raise ClusterError(f"cannot draw '{path}': give a file that ends in .png or .svg")
    if not path.parent.is_dir():
        raise ClusterError(f"cannot draw '{path}': its folder does not exist")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = [step / 50 for step in range(1, 51)]
    top = max(found.utilization, 1e-9)
    reach = min(1.0, top * 730 / max(1.0, found.plan.load.peak_hours_per_month))
    shares = [share for share in shares if share <= max(reach, top)]
    for name, line in curves(found.plan, shares).items():
        left.plot([100 * share for share in shares], line, color=_COLOURS[name], label=name)
    left.axvline(100 * found.utilization, color="#888888", linewidth=1, linestyle=":")
    left.annotate(
        "this load",
        (100 * found.utilization, 0),
        xytext=(4, 6),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    if found.break_even_utilization is not None:
        left.axvline(100 * found.break_even_utilization, color="#333333", linewidth=1)
        left.annotate(
            f"break-even {found.break_even_utilization:.0%}",
            (100 * found.break_even_utilization, 0),
            xytext=(4, 20),
            textcoords="offset points",
            fontsize=8,
        )
    left.set_xlabel("busy share of the own nodes, %")
    left.set_ylabel("US dollars a month")
    left.set_ylim(bottom=0)
    left.set_title("Cost by utilization")
    left.legend(frameon=False)
    shown = list(reversed(found.swings[:_SHOWN]))
    centre = found.break_even_utilization
    for row, swing in enumerate(shown):
        low = 1.0 if swing.low is None else swing.low
        high = 1.0 if swing.high is None else swing.high
        middle = centre if centre is not None else min(low, high)
        right.barh(row, 100 * (low - middle), left=100 * middle, color="#3c5a99", height=0.6)
        right.barh(row, 100 * (high - middle), left=100 * middle, color="#c2571a", height=0.6)
    right.set_yticks(range(len(shown)), [swing.assumption for swing in shown], fontsize=8)
    if centre is not None:
        right.axvline(100 * centre, color="#333333", linewidth=1)
    right.set_xlabel("break-even utilization, % (100: not below full use)")
    right.set_title("Sensitivity: 30 % less (blue) and more (orange)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)

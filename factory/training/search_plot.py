"""A search as a picture: the validation loss of each trial over its steps, and what it cost.

draw(outcomes, Path("trials.png"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factory.training.search import Outcome, best, described


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG: validation loss over steps by trial, and what each trial cost."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    able = [item for item in outcomes if item.status != "failed" and item.loss is not None]
    chosen = best(outcomes).number if able else None
    colours = {
        "finished": "#1b6e53",
        "stopped early": "#c2571a",
        "out of money": "#3c5a99",
        "failed": "#a3232b",
        "not begun": "#999999",
    }
    for item in outcomes:
        if not item.curve:
            continue
        steps, losses = zip(*item.curve, strict=True)
        wide = 2.6 if item.number == chosen else 1.2
        left.plot(steps, losses, marker="o", ms=3, lw=wide, color=colours[item.status])
        left.annotate(
            str(item.number),
            (steps[-1], losses[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
        )
    left.set_xlabel("optimizer steps")
    left.set_ylabel("validation loss (nats a learned token)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.25)
    bars = [item.number for item in outcomes]
    right.barh(
        bars,
        [item.nusd / 1e9 for item in outcomes],
        color=[colours[item.status] for item in outcomes],
    )
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.invert_yaxis()
    right.set_xlabel("dollars")
    right.set_ylabel("trial")
    seen = [name for name in colours if any(item.status == name for item in outcomes)]
    for name in seen:
        right.barh([0], [0], color=colours[name], label=name)
    right.legend(fontsize=8, loc="best")
    title = "" if chosen is None else f"best: trial {chosen}, {described(outcomes[chosen].params)}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)

"""A picture of a simulation: the traffic, the replicas that each policy holds, who waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from factory.scaling.errors import ScalingError
from factory.scaling.simulation import Result
from factory.scaling.trace import Trace

COLOURS = {"factory": "#1b6ca8", "ray_default": "#c8553d", "clairvoyant": "#6b8f3c"}


def draw(trace: Trace, results: Sequence[Result], path: Path) -> None:
    """Write PNG, SVG or PDF by the suffix of `path`. Raises `ScalingError`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        3, 1, figsize=(10, 7.5), sharex=True, height_ratios=(1, 2, 1), layout="constrained"
    )
    bins = np.arange(0, trace.seconds + 15, 15)
    counts, _ = np.histogram(trace.arrivals, bins)
    axes[0].fill_between(bins[:-1] / 60, counts / 15, step="post", color="#bbbbbb")
    axes[0].set_ylabel("requests a second")
    for result in results:
        minutes = result.timeline[:, 0] / 60
        colour = COLOURS.get(result.policy, "black")
        label = (
            f"{result.policy}: {result.replica_hours:.1f} replica-hours, "
            f"{result.attainment:.1%} in time"
        )
        axes[1].step(minutes, result.timeline[:, 1], where="post", color=colour, label=label)
        axes[2].step(minutes, result.timeline[:, 4], where="post", color=colour, lw=0.8)
    axes[1].set_ylabel("replicas held")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(loc="best", fontsize=9)
    axes[2].set_ylabel("requests that wait")
    axes[2].set_xlabel("minutes")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ScalingError(f"cannot write the plot {path}: {error}") from error
    finally:
        pyplot.close(figure)

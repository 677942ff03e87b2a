"""The demo's page: tables and eight plots, no network needed to read it.

    html = render(report)        # report is the dictionary saved as demo/report.json

Plots are inline SVG, so that the page is one file that can be mailed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

INK, ACCENT, PALE, WARN = "#1f2933", "#2563a6", "#b8cbe0", "#b4552d"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "factory",
}


def render(report: Mapping[str, Any]) -> str:
    """The whole page as one HTML document."""
    drawn = [
        (_accuracy, "Share of test cases answered exactly, with 95 % intervals."),
        (_labels, "The same by module: where the tuned model is still weak."),
        (_loss, "Training loss on the answer's tokens."),
        (_confidence, "Accuracy when only the most confident answers are kept."),
        (_spend, "What the traffic cost, and what it would have cost on the top tier alone."),
        (_latency, "Share of answers that were complete after so many milliseconds."),
        (_stages, "Where the wall time went."),
    ]
    if report["cascade"] is not None:
        drawn.append((_cascade, "The same requests to the teacher alone, and to both."))
    plots = [{"svg": _svg(draw, report), "caption": caption} for draw, caption in drawn]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = Path(__file__).with_name("report.html.j2").read_text("utf-8")
    return environment.from_string(source).render(report=report, plots=plots)


def _svg(draw: Callable[[Axes, Mapping[str, Any]], None], report: Mapping[str, Any]) -> str:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
        draw(axes, report)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The page scales the picture; ids must not collide between the plots of one page.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    prefix = draw.__name__.strip("_")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(href="|url\()#([^")]+)', rf"\1#{prefix}-\2", text)


def _accuracy(axes: Axes, report: Mapping[str, Any]) -> None:
    rows = [("base", report["judge"]["base"]), ("tuned", report["judge"]["candidate"])]
    values = [row["accuracy"] for _, row in rows]
    errors = [
        [row["accuracy"] - row["low"] for _, row in rows],
        [row["high"] - row["accuracy"] for _, row in rows],
    ]
    bars = axes.bar([name for name, _ in rows], values, color=[PALE, ACCENT], width=0.55)
    axes.errorbar([0, 1], values, yerr=errors, fmt="none", ecolor=INK, capsize=5, lw=1)
    axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=14)
    axes.set(ylim=(0, 1), ylabel="accuracy", title="Base and tuned")


def _labels(axes: Axes, report: Mapping[str, Any]) -> None:
    rows = sorted(report["judge"]["by_label"].items(), key=lambda item: item[1]["accuracy"])
    names = [f"{name} ({row['cases']})" for name, row in rows]
    axes.barh(names, [row["accuracy"] for _, row in rows], color=ACCENT, height=0.7)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlim=(0, 1), xlabel="accuracy of the tuned model", title="By module (cases)")


def _loss(axes: Axes, report: Mapping[str, Any]) -> None:
    curve = report["tune"]["loss_curve"]
    if curve:
        steps, losses = zip(*curve, strict=True)
        axes.plot(steps, losses, color=PALE, lw=1)
        axes.plot(steps, _smooth(losses), color=ACCENT, lw=2)
    axes.set(ylim=(0, None), xlabel="optimizer step", ylabel="loss", title="Tuning")


def _smooth(values: Sequence[float], share: float = 0.3) -> list[float]:
    smoothed, level = [], values[0]
    for value in values:
        level += share * (value - level)
        smoothed.append(level)
    return smoothed


def _confidence(axes: Axes, report: Mapping[str, Any]) -> None:
    curve = report["judge"]["coverage"]
    if curve:
        shares, scores = zip(*curve, strict=True)
        axes.plot(shares, scores, color=ACCENT, lw=2)
    axes.set(
        xlim=(0, 1.01),
        ylim=(0, 1.02),
        xlabel="share of cases kept, most confident first",
        ylabel="accuracy of those kept",
        title="What the model's confidence is worth",
    )


def _spend(axes: Axes, report: Mapping[str, Any]) -> None:
    costs = report["costs"]
    values = [costs["cost_nusd"] / 1e6, costs["top_tier_nusd"] / 1e6]
    bars = axes.barh(["with the ladder", "top tier only"], values, color=[ACCENT, WARN], height=0.5)
    axes.bar_label(bars, [f"${value / 1e3:.6f}" for value in values], padding=4)
    axes.set(xlabel="thousandths of a US dollar", title="Spend", xlim=(0, max(values) * 1.35 or 1))


def _latency(axes: Axes, report: Mapping[str, Any]) -> None:
    for (name, values), color in zip(
        sorted(report["latency"]["by_tier_ms"].items()), (PALE, ACCENT, WARN, INK), strict=False
    ):
        ordered = sorted(values)
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        label = "tier 0: cache" if name == "0" else f"tier {name}"
        axes.step(ordered, shares, where="post", color=color, lw=2, label=label)
    axes.set(
        xscale="log",
        ylim=(0, 1.02),
        xlabel="milliseconds",
        ylabel="share of answers",
        title="Latency",
    )
    if axes.lines:
        axes.legend(frameon=False, loc="lower right")


def _stages(axes: Axes, report: Mapping[str, Any]) -> None:
    stages = list(reversed(report["stages"]))
    bars = axes.barh(
        [stage["name"] for stage in stages],
        [stage["seconds"] for stage in stages],
        color=ACCENT,
        height=0.6,
    )
    axes.bar_label(bars, [f"{stage['seconds']:.0f} s" for stage in stages], padding=3)
    axes.set(xlabel="seconds", title="Wall time")
    axes.margins(x=0.15)


def _cascade(axes: Axes, report: Mapping[str, Any]) -> None:
    found = report["cascade"]
    names, rows = ["teacher alone", "student below it"], [found["teacher"], found["cascade"]]
    costs = [row["cost_per_1k_nusd"] / 1e9 for row in rows]
    bars = axes.barh(names, costs, color=[PALE, ACCENT], height=0.5)
    axes.bar_label(
        bars,
        [
            f"${cost:.6f}, {row['accuracy']:.1%} right"
            for cost, row in zip(costs, rows, strict=True)
        ],
        padding=4,
    )
    axes.invert_yaxis()
    axes.set(xlabel="US dollars per 1,000 answers", title="What the student saves")
    axes.set_xlim(0, max(costs) * 1.7 or 1)

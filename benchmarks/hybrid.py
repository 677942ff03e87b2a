"""One cluster at home and in a cloud: what a stock-out costs, and what a reclaimed spot node does.

    python -m benchmarks.hybrid                          # both parts, about six minutes
    python -m benchmarks.hybrid --only stockout --cool-down-s 20
    python -m benchmarks.hybrid --only reclaim --plot reclaimed.png

The nodes, Ray's autoscaler, the node provider, queue, training, serving and ledger are real; the
clouds are fake ones that start Ray nodes on this machine (`fake_cloud`). The reference for a
stock-out is Ray without `HybridNodeProvider` on the same cloud, for a reclaimed node the same
serving before the job began. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from factory.catalog.errors import CatalogError
from factory.cluster import local, token
from factory.cluster.errors import ClusterError


class Part(StrEnum):
    """What is measured."""

    stockout = "stockout"
    reclaim = "reclaim"


def main(
    only: Annotated[Part | None, typer.Option(help="One part; else both.")] = None,
    cool_down_s: Annotated[float, typer.Option(min=5, help="The first cool-down.")] = 60,
    reference_s: Annotated[float, typer.Option(min=5, help="How long Ray alone gets.")] = 60,
    plot: Annotated[Path | None, typer.Option(help="PNG of the reclaimed node's story.")] = None,
) -> None:
    """Measure both parts. Example: python -m benchmarks.hybrid --only stockout"""
    if plot is not None and not plot.resolve().parent.is_dir():
        print(f"error: the folder of --plot {plot} does not exist", file=sys.stderr)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    for variable, value in {token.MODE: "token", local.ONE_MACHINE: "0"}.items():
        os.environ.setdefault(variable, value)
    from benchmarks import reclaimed, stockout  # Ray reads the variables when it is imported

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hybrid-", dir="/tmp") as name:
        folder = Path(name)
        try:
            if only is not Part.reclaim:
                found |= stockout.measured(_made(folder / "ours"), cool_down_s)
                found |= stockout.reference(_made(folder / "ray"), reference_s)
            if only is not Part.stockout:
                found |= reclaimed.measured(_made(folder / "line"), plot)
        except (CatalogError, ClusterError, RuntimeError) as error:
            stockout.say(f"error: {error}")
            raise typer.Exit(1) from error
    print(json.dumps(found))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    typer.run(main)

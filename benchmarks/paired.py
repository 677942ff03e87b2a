"""One client asks two servers in turns: what the one adds to the latency of the other.

    python -m benchmarks.paired URL_A URL_B --key sk-factory-... --seconds 20

Blocks of requests, back to back within a block and in turning order (A B, B A, ...), so that both
meet the same machine, and what a server does after an answer falls into its own next request. Every
prompt is new, and all are of one length. Prints one JSON object.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer

ROUTE = "/v1/chat/completions"
BLOCK = 12
"""Requests of one server in a row; the first one of each block is not counted."""
QUESTION = "Which module of the standard library copies a file with its permission bits?"
RESAMPLES = 2000


@dataclass
class Asking:
    """A kept connection to one server, and what its answers took."""

    url: str
    key: str
    mark: str
    count: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    inside_ms: list[float] = field(default_factory=list)
    """What the server itself says of its model's time, where it does."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.key}",
        }

    def connect(self) -> None:
        """Anew: a server may close a connection that waited while the other one was asked."""
        self._connection.close()
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def forget(self) -> None:
        """Begin to count anew."""
        self.latencies_ms.clear()
        self.inside_ms.clear()

    def ask(self, tokens: int, counted: bool) -> None:
        """One new question. Raises `RuntimeError` for any answer but 200."""
        self.count += 1
        text = f"{self.mark}{self.count:07d} {QUESTION}"
        body = json.dumps(
            {
                "model": "helpdesk",
                "max_tokens": tokens,
                "temperature": 0,
                "messages": [{"role": "user", "content": text}],
            }
        ).encode()
        begun = time.perf_counter()
        self._connection.request("POST", ROUTE, body, self._headers)
        response = self._connection.getresponse()
        said = response.read()
        took = (time.perf_counter() - begun) * 1000
        if response.status != 200:
            raise RuntimeError(f"{self.url} answered {response.status}: {said[:300]!r}")
        if counted:
            self.latencies_ms.append(took)
            if (own := response.headers.get("x-factory-overhead-ms")) is not None:
                self.inside_ms.append(float(own))
            elif (engine := response.headers.get("x-engine-ms")) is not None:
                self.inside_ms.append(took - float(engine))


def paired(first: Asking, second: Asking, seconds: float, tokens: int) -> None:
    """Ask both in turning order for so long."""
    until = time.monotonic() + seconds
    order = [first, second]
    while time.monotonic() < until:
        for asking in order:
            asking.connect()
            for number in range(BLOCK):
                asking.ask(tokens, counted=number > 0)
        order.reverse()


def difference(
    ours: Sequence[float], theirs: Sequence[float], quantile: float
) -> tuple[float, float, float]:
    """The difference of a quantile with its 95 % bootstrap interval, over blocks."""
    rng = np.random.default_rng(0)
    size = BLOCK - 1
    blocks = [np.array(one[: len(one) // size * size]).reshape(-1, size) for one in (ours, theirs)]
    count = min(len(each) for each in blocks)
    a, b = (each[:count] for each in blocks)
    drawn = rng.integers(0, count, (RESAMPLES, count))
    spread = [
        float(np.quantile(a[rows], quantile) - np.quantile(b[rows], quantile)) for rows in drawn
    ]
    found = float(np.quantile(a, quantile) - np.quantile(b, quantile))
    low, high = np.quantile(spread, [0.025, 0.975])
    return found, float(low), float(high)


def figures(ours: Asking, theirs: Asking) -> dict[str, Any]:
    """Quantiles of both and of their difference, in milliseconds."""
    p50 = difference(ours.latencies_ms, theirs.latencies_ms, 0.5)
    p95 = difference(ours.latencies_ms, theirs.latencies_ms, 0.95)
    return {
        "overhead_p50_ms": p50[0],
        "overhead_p50_interval_ms": [p50[1], p50[2]],
        "overhead_p95_ms": p95[0],
        "overhead_p95_interval_ms": [p95[1], p95[2]],
        "overhead_told_p50_ms": median(ours.inside_ms) if ours.inside_ms else None,
        "gateway_c1_p50_ms": median(ours.latencies_ms),
        "engine_c1_p50_ms": median(theirs.latencies_ms),
        "pairs": min(len(ours.latencies_ms), len(theirs.latencies_ms)),
    }


def main(
    url: Annotated[str, typer.Argument(help="The gateway, such as http://127.0.0.1:8000.")],
    bare: Annotated[str, typer.Argument(help="The same engine without a gateway.")],
    key: Annotated[str, typer.Option(help="A key of the gateway.")],
    seconds: Annotated[float, typer.Option(help="How long to ask.")] = 20.0,
    tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 2,
) -> None:
    """Measure what the gateway adds.

    Example: python -m benchmarks.paired http://127.0.0.1:8000 http://127.0.0.1:8001 --key KEY
    """
    ours, theirs = Asking(url, key, "g"), Asking(bare, key, "e")
    paired(ours, theirs, 2, tokens)
    for one in (ours, theirs):
        one.forget()
    paired(ours, theirs, seconds, tokens)
    print(json.dumps(figures(ours, theirs)))


if __name__ == "__main__":
    sys.exit(typer.run(main))

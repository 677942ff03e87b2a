"""From no replica at all to the first token, through Ray Serve, and with a standby.

    python -m benchmarks.cold_start                      # about 4 minutes; pulls the model first
    python -m benchmarks.cold_start --model-dir DIR --runs 5 --no-reference
    python -m benchmarks.cold_start --plot cycle.png     # and a picture of the way there and back
    python -m benchmarks.cold_start --wear               # and a standby that sleeps until replaced

Each run waits until the engine is asleep, asks for a stream, and stops the clock at its first
chunk. The reference is `ray.serve.llm`'s own deployment of the same model, from its deployment to
its first chunk. The last line is one JSON object; times are medians in seconds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import ray
import typer
from ray import serve
from ray.exceptions import RayError

from factory import config
from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.scaling import Target
from serve_apps.engine import MOST_NAPS, engine_app
from serve_apps.engine_spec import EngineSpec
from serve_apps.ray_engine import RayEngine

MODEL = "smollm2-135m"
CORES = 2
IDLE_S = 3.0
WEAR_IDLE_S = 0.5
"""Seconds without a request after which a standby sleeps that is to be worn out."""
BODY = {
    "messages": [{"role": "user", "content": "Which module copies files?"}],
    "max_tokens": 4,
}
STANDBY_S = 8.0
"""Seconds over which a sleeping standby's use of the CPU is measured."""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def main(
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder with config, tokenizer and safetensors.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 3,
    reference: Annotated[bool, typer.Option(help="Also time ray.serve.llm as it comes.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw the cycles into this PNG.")] = None,
    wear: Annotated[
        bool, typer.Option(help="Also let a standby sleep until another takes over.")
    ] = False,
) -> None:
    """Time cold starts. Example: python -m benchmarks.cold_start --runs 3"""
    if model_dir is not None and not (model_dir / "config.json").is_file():
        print(f"error: '{model_dir}' has no config.json; give a model's folder", file=sys.stderr)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory(prefix="cold-", dir="/tmp") as name:
        folder = Path(name)
        path = model_dir or _pulled(folder)
        ray.init(
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=str(folder / "ray"),
            object_store_memory=128 * 2**20,
        )
        try:
            serve.start(http_options={"location": "NoServer"})
            found = asyncio.run(_all(str(path.resolve()), runs, reference, plot, wear))
        finally:
            serve.shutdown()
            ray.shutdown()
    print(json.dumps(found))


def _pulled(folder: Path) -> Path:
    settings = config.parse(config.default_text(), "the packaged factory.yaml", folder, {})
    settings = settings.model_copy(update={"home": folder})
    say(f"pulling {MODEL}")
    return pull(settings, MODEL, ObjectStore(folder / "objects")).path


async def _all(
    path: str, runs: int, reference: bool, plot: Path | None, wear: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cycles: list[Cycle] = []
    target = Target(min_replicas=0, idle_after_s=IDLE_S)
    asleep = EngineSpec(model_id=MODEL, path=path, target=target)
    say("no replica")
    found |= await _measure("cold", asleep, runs, "", cycles)
    standby = EngineSpec(model_id=MODEL, path=path, target=target, standby=True)
    say("a standby")
    found |= await _measure("standby", standby, runs, "standby_", cycles)
    if wear:
        say("a standby that sleeps often")
        found |= await _wear(path)
    if plot is not None:
        draw(cycles, plot)
        say(f"drawn into {plot}")
    if reference:
        say("ray.serve.llm as it comes")
        found["reference_zero_to_first_token_s"] = await _reference(path)
    return found


async def _measure(
    name: str, spec: EngineSpec, runs: int, prefix: str, cycles: list[Cycle]
) -> dict[str, Any]:
    # serve.run waits for itself, in its own event loop.
    app = engine_app(spec, name=name, cores=CORES)
    handle = await asyncio.to_thread(serve.run, app, name=name, route_prefix=None)
    engine = RayEngine(handle)
    state = handle.options(method_name="state")
    cycle = Cycle(f"{name}: memory of the engine's replica")
    cycles.append(cycle)
    watching = asyncio.create_task(cycle.watch(name))
    seen: list[dict[str, float]] = []
    asleep: dict[str, float] = {}
    for run in range(runs):
        if spec.standby:
            asleep = await _dozing(state)
        else:
            await _until(lambda: _replicas(name, 0))
        begun = time.perf_counter()
        asked = cycle.now()
        total = await _first_token(engine)
        cycle.requests.append((asked, total))
        rest = time.perf_counter() - begun - total
        times = dict(await state.remote()) | {"total_s": total}
        seen.append(times)
        say(
            f"  {run + 1}: {total:.1f} s to the first token, {rest:.2f} s to the last; {_of(times)}"
        )
    await asyncio.sleep(IDLE_S + 3 if runs else 0)
    watching.cancel()
    await asyncio.to_thread(serve.delete, name)

    def median(key: str) -> float:
        return round(statistics.median(one[key] for one in seen), 2)

    found: dict[str, Any] = {
        f"{prefix}zero_to_first_token_s": median("total_s"),
        f"{prefix}weights_s": median("weights_s"),
        f"{prefix}warm_up_s": median("warm_up_s"),
        f"{prefix}runs_s": [round(one["total_s"], 2) for one in seen],
    }
    if spec.standby:
        return found | {
            "standby_rss_mb": round(asleep["rss_bytes"] / 2**20),
            "standby_cpu_share": round(asleep["cpu_share"], 4),
            "awake_rss_mb": round(seen[-1]["rss_bytes"] / 2**20),
        }
    serve_s = [
        one["total_s"] - one["engine_import_s"] - one["weights_s"] - one["warm_up_s"]
        for one in seen
    ]
    return found | {
        "engine_import_s": median("engine_import_s"),
        "serve_s": round(statistics.median(serve_s), 2),
    }


async def _wear(path: str) -> dict[str, Any]:
    """Wake a standby as often as it may sleep; what each sleep leaves, and when another is there.

    Raises `TimeoutError` when none comes.
    """
    target = Target(min_replicas=0, idle_after_s=WEAR_IDLE_S)
    spec = EngineSpec(model_id=MODEL, path=path, target=target, standby=True)
    app = engine_app(spec, name="wear", cores=CORES)
    handle = await asyncio.to_thread(serve.run, app, name="wear", route_prefix=None)
    engine, report = RayEngine(handle), handle.options(method_name="report")
    first = (await report.remote()).replica
    left: list[int] = []
    for nap in range(MOST_NAPS):
        await _first_token(engine)
        state = await _asleep(handle.options(method_name="state"))
        left.append(round(state["rss_bytes"] / 2**20))
        say(f"  sleep {nap + 1}: {left[-1]} MB")
    begun = time.perf_counter()

    async def another() -> bool:
        try:
            return bool((await report.remote()).replica != first)
        except RayError:
            return False

    await _until(another)
    replaced = time.perf_counter() - begun
    await _first_token(engine)
    await asyncio.to_thread(serve.delete, "wear")
    return {
        "wear_rss_mb": left,
        "wear_mb_a_sleep": round((left[-1] - left[1]) / (len(left) - 2), 1),
        "wear_replaced_after_s": round(replaced, 1),
    }


@dataclass
class Cycle:
    """Memory of a deployment's replicas over time, and the requests that woke it."""

    title: str
    begun: float = field(default_factory=time.monotonic)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, and MB in all of its replicas."""
    requests: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, and seconds to the first token."""

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    async def watch(self, app: str) -> None:
        """Look four times a second until cancelled."""
        while True:
            self.memory.append((self.now(), await asyncio.to_thread(_memory, f":{app}:")))
            await asyncio.sleep(0.25)


def _memory(mark: str) -> float:
    """MB in the replicas whose process title has `mark`."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ServeReplica" in (title := " ".join(child.cmdline())) and mark in title:
                total += child.memory_info().rss
    return total / 2**20


def draw(cycles: list[Cycle], file: Path) -> None:
    """One panel a cycle: memory as an area, requests as lines of the length of their wait."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8 * len(cycles)), layout="constrained")
    panels = figure.subplots(len(cycles), 1, squeeze=False)[:, 0]
    for panel, cycle in zip(panels, cycles, strict=True):
        times, memory = zip(*cycle.memory, strict=True) if cycle.memory else ((), ())
        panel.fill_between(times, memory, step="post", alpha=0.35)
        top = max(memory, default=1.0)
        for number, (asked, wait) in enumerate(cycle.requests):
            label = "request until its first token" if number == 0 else None
            panel.hlines(top * 1.06, asked, asked + wait, color="C3", linewidth=3, label=label)
            panel.annotate(f"{wait:.1f} s", (asked, top * 1.1), color="C3", fontsize=8)
        panel.set(title=cycle.title, xlabel="seconds", ylabel="MB", ylim=(0, top * 1.3))
        panel.legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=120)


def _of(times: dict[str, float]) -> str:
    keys = ("engine_import_s", "weights_s", "warm_up_s")
    return ", ".join(f"{key.removesuffix('_s')} {times[key]:.1f}" for key in keys)


async def _first_token(engine: RayEngine) -> float:
    begun = time.perf_counter()
    first = 0.0
    async for chunk in engine.stream(BODY):
        said = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
        if said and not first:
            first = time.perf_counter() - begun
    return first


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await condition():
            await asyncio.sleep(0.2)


async def _replicas(app: str, wanted: int) -> bool:
    status = await asyncio.to_thread(serve.status)
    deployments = status.applications[app].deployments.values()
    return sum(sum(one.replica_states.values()) for one in deployments) == wanted


async def _asleep(state: Any) -> dict[str, float]:
    """The state of a standby, once it sleeps."""

    async def asleep() -> bool:
        return not (await state.remote())["awake"]

    await _until(asleep)
    return dict(await state.remote())


async def _dozing(state: Any) -> dict[str, float]:
    """The state of a standby that sleeps, with its share of one core while it does."""
    before = await _asleep(state)
    await asyncio.sleep(STANDBY_S)
    after = await state.remote()
    return dict(after) | {"cpu_share": (after["cpu_s"] - before["cpu_s"]) / STANDBY_S}


async def _reference(path: str) -> float:
    """`build_llm_deployment` with nothing but what a CPU and this model demand."""
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    llm = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": path},
        accelerator_config={"kind": "cpu"},
        engine_kwargs={"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True},
        runtime_env={"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}},
        deployment_config={"ray_actor_options": {"num_cpus": 0.5}},
        placement_group_config={"bundles": [{"CPU": 0.5}]},
    )
    begun = time.perf_counter()
    handle = await asyncio.to_thread(
        serve.run, build_llm_deployment(llm), name="reference", route_prefix=None
    )
    request = ChatCompletionRequest(model=MODEL, stream=True, **BODY)
    async for _ in handle.options(method_name="chat", stream=True).remote(request):
        break
    total = time.perf_counter() - begun
    say(f"  {total:.1f} s to the first token")
    await asyncio.to_thread(serve.delete, "reference")
    return round(total, 2)


if __name__ == "__main__":
    typer.run(main)

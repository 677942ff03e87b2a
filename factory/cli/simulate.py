"""`factory simulate` and `factory profile`: what an endpoint will cost before it exists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.console import Json, emit, progress, state, table

if TYPE_CHECKING:
    from factory.catalog.objects import ObjectStore
    from factory.scaling.profile import Profile

KIND = "profiles"
"""Kind of measured profiles in the object store."""


def simulate(
    context: typer.Context,
    trace: Annotated[
        Path,
        typer.Option(metavar="FILE.csv", help="TIMESTAMP,ContextTokens,GeneratedTokens a row."),
    ],
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE.json",
            help="A model measured by `factory profile`, or a file; default: SmolLM2 on 2 cores.",
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="How many times the traffic.")] = 1.0,
    target_ttft_ms: Annotated[
        float | None, typer.Option(min=1, help="Time to first token to hold; default: feasible.")
    ] = None,
    attainment: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Wanted share of requests in time.")
    ] = 0.99,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Dollars of a replica-hour; default: the profile's.")
    ] = None,
    min_replicas: Annotated[int, typer.Option(min=0, help="The floor.")] = 1,
    idle_after_s: Annotated[
        float, typer.Option(min=1, help="Seconds without requests until the floor.")
    ] = 600.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the replicas over time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scaling and the router.")] = 0,
    json: Json = False,
) -> None:
    """Replay traffic: latency, replica-hours and dollars of our policy and of two references.

    Beside ours stand Ray Serve's default policy, its request target tuned on this very trace, and
    the fewest replica-hours of somebody who knows the trace beforehand.

    Example: factory simulate --trace traffic.csv --target-ttft-ms 8000 --plot replicas.png
    """
    from factory.catalog.objects import ObjectStore
    from factory.scaling.clairvoyant import clairvoyant
    from factory.scaling.plot import draw
    from factory.scaling.serve_default import ServeDefault, request_targets, tuned
    from factory.scaling.simulation import (
        Ours,
        Slo,
        enough_replicas,
        initial_replicas,
        simulate,
        usual_target_s,
    )
    from factory.scaling.target import Target
    from factory.scaling.trace import Trace

    replica = _profile(ObjectStore(state(context).settings.objects), profile)
    if usd_per_hour is not None:
        replica = replica.model_copy(update={"usd_per_hour": usd_per_hour})
    traffic = Trace.read(trace).scaled(scale, seed=seed)
    ttft_s = target_ttft_ms / 1000 if target_ttft_ms else usual_target_s(traffic, replica)
    slo, initial = Slo(ttft_s=ttft_s), initial_replicas(traffic, replica)
    most = max(enough_replicas(traffic, replica), min_replicas)
    target = Target(
        min_replicas=min_replicas,
        max_replicas=most,
        idle_after_s=idle_after_s,
        ttft_s=ttft_s,
        attainment=attainment,
    )

    with progress() as tell:
        tell("our policy")
        ours = simulate(traffic, replica, Ours(target), slo, initial=initial, most=most, seed=seed)
        tried = {}
        for wanted in request_targets(replica.max_ongoing, coarse=True):
            tell(f"Ray Serve's default at {wanted:g} requests a replica")
            serve = ServeDefault(
                target_ongoing_requests=wanted, min_replicas=min_replicas, max_replicas=most
            )
            tried[wanted] = simulate(
                traffic, replica, serve, slo, initial=initial, most=most, seed=seed
            )
        chosen = tuned(tried, attainment)
        seer = clairvoyant(
            traffic, replica, slo,
            attainment=attainment, initial=initial, most=most, seed=seed,
            rounds=30, progress=lambda text: tell(f"the clairvoyant's plan: {text}"),
        )  # fmt: skip
    results = (ours, tried[chosen], seer.result)
    if plot is not None:
        draw(traffic, results, plot)
    facts: dict[str, Any] = {
        "requests": len(traffic),
        "seconds": round(traffic.seconds, 1),
        "target_ttft_ms": round(1000 * ttft_s),
        "attainment": attainment,
        "profile": {"model": replica.model, "hardware": replica.hardware},
        "usd_per_replica_hour": replica.usd_per_hour,
        "ray_target_ongoing_requests": chosen,
    }
    if json:
        emit(facts | {result.policy: result.summary() for result in results})
        return
    names = {
        "factory": "factory",
        "ray_default": f"Ray Serve, {chosen:g} requests a replica",
        "clairvoyant": "clairvoyant",
    }
    typer.echo(
        f"{len(traffic):,} requests in {traffic.seconds / 60:.0f} minutes; "
        f"{replica.model} on {replica.hardware}; first token within {ttft_s:.1f} s"
    )
    table(
        (
            "policy",
            "in time",
            "p50",
            "p95",
            "p99",
            "between tokens",
            "replica-hours",
            "USD",
            "peak",
        ),
        [
            (
                names[one.policy],
                f"{one.attainment:.2%}",
                f"{one.ttft_p50_s:.1f} s",
                f"{one.ttft_p95_s:.1f} s",
                f"{one.ttft_p99_s:.1f} s",
                f"{1000 * one.inter_token_p50_s:.0f} ms",
                f"{one.replica_hours:.2f}",
                f"{one.usd:.2f}",
                one.peak,
            )
            for one in results
        ],
        "nothing was simulated",
    )
    if plot is not None:
        typer.echo(f"The plot is in {plot}")


def profile(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model of the catalog that generates text.")],
    key: Annotated[
        str, typer.Option(envvar="FACTORY_API_KEY", help="API key that may use the model.")
    ],
    url: Annotated[
        str | None, typer.Option(help="Root of an OpenAI-compatible API; default: the gateway's.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="What it runs on, for the record.")] = "",
    startup_s: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds a replica needs; default: configured.")
    ] = None,
    usd_per_hour: Annotated[float, typer.Option(min=0, help="Dollars of a replica-hour.")] = 0.0,
    max_batch: Annotated[int, typer.Option(min=1, help="The engine's max_num_seqs.")] = 32,
    kv_tokens: Annotated[int, typer.Option(min=1, help="Tokens its KV cache holds.")] = 46_592,
    json: Json = False,
) -> None:
    """Measure a running engine: prefill and decoding at several batch sizes, about a minute.

    Run it while nothing else asks the engine. The profile goes to the object store, where
    `factory simulate --profile MODEL` finds it.

    Example: factory profile smollm2-135m --key "$FACTORY_API_KEY" --hardware "2 CPU cores"
    """
    import asyncio
    from dataclasses import asdict
    from datetime import UTC, datetime

    from openai import AsyncOpenAI

    from factory.catalog.objects import ObjectStore
    from factory.cluster import serving
    from factory.scaling.errors import ScalingError
    from factory.scaling.measure import BATCHES, measure
    from factory.scaling.profile import Profile, fit

    settings = state(context).settings
    known = settings.models.get(model)
    if known is None or known.engine != "vllm":
        generating = [name for name, one in settings.models.items() if one.engine == "vllm"]
        raise ScalingError(
            f"'{model}' is not a model that an engine of ours generates with; "
            f"there are: {', '.join(generating) or 'none'}"
        )
    root = (url or serving.serving(settings).url).rstrip("/").removesuffix("/v1")
    client = AsyncOpenAI(base_url=f"{root}/v1", api_key=key, max_retries=0)
    with progress() as tell:
        samples = asyncio.run(
            measure(
                client, model,
                max_model_len=known.max_model_len,
                batches=[one for one in BATCHES if one <= max_batch],
                progress=tell,
            )
        )  # fmt: skip
    costs = fit(samples)
    made = Profile(
        model=model,
        hardware=hardware or "unnamed",
        measured=f"{datetime.now(UTC):%Y-%m-%d}, factory profile {model}",
        per_step_s=costs.per_step_s,
        per_sequence_s=costs.per_sequence_s,
        per_prompt_token_s=costs.per_prompt_token_s,
        per_context_token_s=costs.per_context_token_s,
        overhead_s=costs.overhead_s,
        max_batch=max_batch,
        max_ongoing=max_batch,
        kv_tokens=kv_tokens,
        startup_s=startup_s or known.scaling.startup_s,
        usd_per_hour=usd_per_hour,
    )
    text = made.model_dump_json(indent=2) + "\n"

    def fill(folder: Path) -> None:
        (folder / "profile.json").write_text(text, "utf-8")

    stored = ObjectStore(settings.objects).put(KIND, model, fill)
    if json:
        emit(
            made.model_dump()
            | {
                "error": costs.error,
                "path": str(stored.path / "profile.json"),
                "samples": [asdict(one) for one in samples],
            }
        )
        return
    table(
        ("together", "prompt", "first token", "between tokens", "tokens/s"),
        [
            (
                one.running,
                f"{one.prompt:.0f}",
                f"{1000 * one.ttft_s:.0f} ms",
                f"{1000 * one.inter_token_s:.0f} ms",
                f"{one.running / one.inter_token_s:.0f}" if one.inter_token_s else "",
            )
            for one in samples
        ],
        "nothing was measured",
    )
    typer.echo(
        f"A step takes {1000 * made.per_step_s:.1f} ms, each running request "
        f"{1000 * made.per_sequence_s:.2f} ms more, each prompt token "
        f"{1000 * made.per_prompt_token_s:.2f} ms (fit within {costs.error:.0%}).\n"
        f"The profile is in {stored.path / 'profile.json'}"
    )


def _profile(store: ObjectStore, name: str | None) -> Profile:
    """The profile that the user means."""
    from factory.scaling.errors import ScalingError
    from factory.scaling.profile import Profile

    if name is None:
        return Profile.packaged()
    if name.endswith(".json"):
        return Profile.read(Path(name))
    found = store.find(KIND, name)
    if found is None:
        raise ScalingError(
            f"'{name}' has not been measured; run `factory profile {name}`, or name a .json file"
        )
    return Profile.read(found.path / "profile.json")

"""The simulator against a real engine: the same requests, measured and simulated side by side.

    python -m benchmarks.simulator --trace FILE.csv [--seconds 90] [--rate 0.5]
        [--profile FILE.json] [--url http://127.0.0.1:8000 --key KEY --model MODEL]

Without `--url` it starts a line of its own with the small model and ends it afterwards. The first
`--seconds` of the trace, thinned to `--rate` requests a second and with lengths cut to
`--longest` tokens, are asked of one engine over HTTP. What really came (arrival times, prompt and
answer tokens) is then replayed in the simulator with one replica. Without `--profile` the engine
is measured first, as `factory profile` does, and `--keep-profile` writes what was found. Nothing
else may ask the engine meanwhile. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAIError

from benchmarks.drills import say
from benchmarks.small_line import MODEL, small_line
from factory.scaling.errors import ScalingError
from factory.scaling.fleet import Fleet
from factory.scaling.measure import WORDS, measure
from factory.scaling.profile import Profile, fit
from factory.scaling.trace import Trace

Floats = NDArray[np.float64]
TOKENS_A_WORD = 1.3
"""Of the words that prompts are made of; the engine says how many tokens they really were."""


@contextmanager
def line(longest: int) -> Iterator[tuple[str, str, str]]:
    """A line of its own: URL, key and model. Asking the model by name passes router and cache."""
    with small_line({"lab": {"class": "production"}}, model={"max_model_len": longest}) as own:
        yield own.url, own.keys["lab"], MODEL


async def replay(client: AsyncOpenAI, model: str, trace: Trace, seed: int) -> dict[str, Floats]:
    """Ask every request at its time; what was really asked and when it was answered."""
    words = random.Random(seed)
    start = time.perf_counter()
    rows: list[tuple[float, float, float, float, float]] = []

    async def ask(when: float, prompt: int, answer: int) -> None:
        text = " ".join(words.choices(WORDS, k=max(1, round((prompt - 40) / TOKENS_A_WORD))))
        await asyncio.sleep(max(0.0, start + when - time.perf_counter()))
        asked = time.perf_counter() - start
        first, tokens, prompt_tokens = 0.0, 0, 0
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Continue this list of words: {text}"}],
            max_tokens=answer,
            temperature=1.0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content and not first:
                first = time.perf_counter() - start
            if chunk.usage is not None:
                tokens, prompt_tokens = chunk.usage.completion_tokens, chunk.usage.prompt_tokens
        end = time.perf_counter() - start
        rows.append((asked, prompt_tokens, max(tokens, 1), first or end, end))

    requests = zip(trace.arrivals, trace.prompt, trace.generated, strict=True)
    await asyncio.gather(*(ask(float(t), int(p), int(g)) for t, p, g in requests))
    columns = np.array(sorted(rows)).T
    names = ("asked", "prompt", "generated", "first", "last")
    return dict(zip(names, columns, strict=True))


def simulated(real: dict[str, Floats], profile: Profile) -> tuple[Floats, Floats]:
    """Time to first token and to the last one, of the same requests on one simulated replica."""
    trace = Trace(
        arrivals=real["asked"],
        prompt=real["prompt"].astype(np.int64),
        generated=real["generated"].astype(np.int64),
    )
    fleet = Fleet(profile, trace, most=1, seed=0)
    fleet.resize(1, now=0.0, at_once=True)
    fleet.advance(float(real["asked"].max()) + 3600)
    outside = profile.overhead_s - trace.arrivals
    return fleet.first + outside, fleet.last + outside


def compare(measured: Floats, predicted: Floats) -> dict[str, float]:
    """Quantiles side by side, and the relative error of each and of the mean."""
    found: dict[str, float] = {}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        real, said = float(np.quantile(measured, share)), float(np.quantile(predicted, share))
        found |= {f"{name}_s": real, f"{name}_simulated_s": said, f"{name}_error": said / real - 1}
    found["mean_error"] = float(predicted.mean() / measured.mean() - 1)
    return {name: round(value, 4) for name, value in found.items()}


async def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure, replay, simulate."""
    url = chosen.url.rstrip("/").removesuffix("/v1")
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=chosen.key, max_retries=0)
    whole = Trace.read(chosen.trace)
    early = whole.arrivals < chosen.seconds
    rate = max(int(early.sum()), 1) / chosen.seconds
    longest = chosen.longest
    part = Trace.of(
        whole.arrivals[early],
        np.clip(whole.prompt[early], 48, longest),
        np.clip(whole.generated[early], 1, longest // 4),
    ).scaled(min(1.0, chosen.rate / rate), seed=chosen.seed)
    profile = Profile.read(chosen.profile) if chosen.profile else Profile.packaged()
    if chosen.profile is None:
        samples = await measure(client, chosen.model, max_model_len=longest * 5 // 4, progress=say)
        costs = fit(samples)
        profile = profile.model_copy(
            update={
                "per_step_s": costs.per_step_s,
                "per_sequence_s": costs.per_sequence_s,
                "per_prompt_token_s": costs.per_prompt_token_s,
                "per_context_token_s": costs.per_context_token_s,
                "overhead_s": costs.overhead_s,
                "model": chosen.model,
                "hardware": f"{os.cpu_count()} CPU cores",
                "measured": f"{time.strftime('%Y-%m-%d')}, python -m benchmarks.simulator",
            }
        )
        for sample in samples:
            say(f"  {sample}")
    if chosen.keep_profile is not None:
        chosen.keep_profile.write_text(profile.model_dump_json(indent=2) + "\n", "utf-8")
    say(f"replaying {len(part)} requests in {part.seconds:.0f} s")
    real = await replay(client, chosen.model, part, chosen.seed)
    first, last = simulated(real, profile)
    return {
        "ttft": compare(real["first"] - real["asked"], first),
        "latency": compare(real["last"] - real["asked"], last),
        "busy_error": round(float((last + real["asked"]).max() / real["last"].max() - 1), 4),
        "requests": len(part),
        "prompt_tokens": int(real["prompt"].sum()),
        "generated_tokens": int(real["generated"].sum()),
        "profile": profile.model_dump(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator",
        description="The simulator's error against a real engine.",
        epilog="Example: python -m benchmarks.simulator --trace azure_llm_2023_conv.csv",
    )
    parser.add_argument(
        "--url", help="root of an OpenAI-compatible API; without it a line is started"
    )
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--model", default=MODEL, help="the model to ask")
    parser.add_argument("--trace", type=Path, required=True, help="CSV of requests")
    parser.add_argument("--seconds", type=float, default=90, help="how much of the trace")
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--longest", type=int, default=800, help="tokens of the longest prompt")
    parser.add_argument("--profile", type=Path, help="a profile; without it one is measured")
    parser.add_argument("--keep-profile", type=Path, help="where to write the profile used")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if (chosen.url is None) != (chosen.key is None):
        parser.error("--url and --key go together")
    own = (
        line(chosen.longest * 5 // 4)
        if chosen.url is None
        else nullcontext((chosen.url, chosen.key, chosen.model))
    )
    try:
        with own as (chosen.url, chosen.key, chosen.model):
            found = asyncio.run(run(chosen))
        print(json.dumps(found))
    except (ScalingError, OpenAIError) as error:
        sys.exit(f"simulator: {error}")


if __name__ == "__main__":
    main()

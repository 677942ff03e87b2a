"""Measure one running engine over HTTP: what `factory profile MODEL` does.

    samples = asyncio.run(measure(client, "smollm2-135m", max_model_len=1024))

Any OpenAI-compatible server will do. Every prompt is new, so that no cache answers, and requests of
a batch begin together. Prompts are also measured beside answers that are under way, as most of them
arrive in production. The engine should have nothing else to do meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from factory.scaling.errors import ScalingError
from factory.scaling.profile import Sample

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BATCHES = (1, 2, 4, 8, 16, 32)
"""Requests that run together, for the cost of a running request."""
DEEP, DEEP_BATCHES = 400, (4, 12)
"""Words of long prompts, and how many of them run together, for the cost of their context."""
ANSWER = 48
"""Tokens of an answer while batches are measured."""
LONG_ANSWER, SETTLE_S = 160, 1.0
"""Tokens of the answers beside which prompts are measured, and seconds for those to get going."""
SHORT = 48
"""Words of a prompt meanwhile; a few of the lengths below are measured alone."""
LENGTHS = (32, 128, 460, 1000)
"""Words of prompts whose time to first token is measured, as far as the context allows."""
BESIDE = (2, 6)
"""Answers under way while a prompt of each length is measured once more."""
REPEATS = 3
"""Times of what is over soon: single prompts, and batches up to `FEW`."""
FEW = 8
WORDS = [
    "river",
    "stone",
    "amber",
    "wheel",
    "paper",
    "cloud",
    "green",
    "lamp",
    "north",
    "bread",
    "silver",
    "garden",
    "window",
    "seven",
    "copper",
    "letter",
    "winter",
    "music",
    "honest",
    "table",
]


async def measure(
    client: AsyncOpenAI,
    model: str,
    *,
    max_model_len: int,
    batches: Sequence[int] = BATCHES,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Sample]:
    """Samples for `profile.fit`. Raises `ScalingError` when the engine does not answer."""
    import openai

    words = random.Random(seed)
    samples = []
    try:
        await _together(client, model, 1, SHORT, ANSWER, words)
        for length in LENGTHS:
            if length * 2 + ANSWER > max_model_len:
                continue
            progress(f"prompts of {length} words, alone")
            alone = [await _together(client, model, 1, length, 8, words) for _ in range(REPEATS)]
            samples.append(_middle(alone))
            for beside in BESIDE:
                progress(f"prompts of {length} words beside {beside} answers")
                samples += await _beside(client, model, beside, length, words)
        for running in batches:
            progress(f"{running} requests together")
            times = REPEATS if running <= FEW else 1
            several = [
                await _together(client, model, running, SHORT, ANSWER, words) for _ in range(times)
            ]
            samples.append(sorted(several, key=lambda one: one.inter_token_s)[times // 2])
        for running in DEEP_BATCHES if max_model_len >= DEEP * 2 + LONG_ANSWER else ():
            progress(f"{running} requests of {DEEP} words together")
            # Long answers: the first must not be over before the last prompt is computed.
            samples.append(await _together(client, model, running, DEEP, LONG_ANSWER, words))
    except openai.OpenAIError as error:
        raise ScalingError(f"the engine of '{model}' does not answer: {error}") from error
    return samples


def _middle(samples: Sequence[Sample]) -> Sample:
    """The sample with the median time to first token."""
    return sorted(samples, key=lambda one: one.ttft_s)[len(samples) // 2]


async def _together(
    client: AsyncOpenAI, model: str, running: int, length: int, answer: int, words: random.Random
) -> Sample:
    """`running` requests that begin together."""
    prompts = [" ".join(words.choices(WORDS, k=length)) for _ in range(running)]
    begun = time.perf_counter()
    answers = await asyncio.gather(*(_stream(client, model, one, answer) for one in prompts))
    firsts = [times[0] - begun for times, _, _ in answers]
    everybody = max(times[0] for times, _, _ in answers)
    earliest = min(times[-1] for times, _, _ in answers)
    gaps = [
        # A piece of a stream may hold several tokens.
        (later - earlier) * len(times) / tokens
        for times, _, tokens in answers
        for earlier, later in pairwise(times)
        if earlier >= everybody and later <= earliest
    ]
    return Sample(
        running=running,
        prompt=median(prompt for _, prompt, _ in answers),
        generated=median(tokens for _, _, tokens in answers),
        ttft_s=median(firsts),
        inter_token_s=sum(gaps) / len(gaps) if gaps else 0.0,
    )


async def _beside(
    client: AsyncOpenAI, model: str, beside: int, length: int, words: random.Random
) -> list[Sample]:
    """Prompts that arrive one after the other while `beside` answers are under way."""
    going = asyncio.gather(
        *(
            _stream(client, model, " ".join(words.choices(WORDS, k=SHORT)), LONG_ANSWER)
            for _ in range(beside)
        )
    )
    try:
        # The others' prompts first: as long as they take together, and some steps more.
        await asyncio.sleep(SETTLE_S)
        asked = []
        for _ in range(REPEATS):
            at = time.perf_counter()
            times, prompt, _ = await _stream(
                client, model, " ".join(words.choices(WORDS, k=length)), 1
            )
            asked.append((at, times[0] - at, prompt))
        answers = await going
    finally:
        going.cancel()
    found = []
    for at, took, prompt in asked:
        # Only while all of the others were at it.
        if all(times[0] <= at and at + took <= times[-1] for times, _, _ in answers):
            done = [
                their + generated * (at - times[0]) / (times[-1] - times[0])
                for times, their, generated in answers
            ]
            found.append(
                Sample(
                    running=1,
                    prompt=prompt,
                    generated=1,
                    ttft_s=took,
                    inter_token_s=0.0,
                    beside=beside,
                    context=sum(done),
                )
            )
    return [_middle(found)] if found else []


async def _stream(
    client: AsyncOpenAI, model: str, prompt: str, answer: int
) -> tuple[list[float], int, int]:
    """When each piece of the answer came, and the tokens of the prompt and of the answer."""
    ask: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "user", "content": f"Write a long story in which these words occur: {prompt}"}
        ],
        "max_tokens": answer,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    times: list[float] = []
    tokens, generated = 0, 0
    async for chunk in await client.chat.completions.create(**ask):
        if chunk.choices and chunk.choices[0].delta.content:
            times.append(time.perf_counter())
        if chunk.usage is not None:
            tokens, generated = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    if not times:
        raise ScalingError(f"'{model}' answered nothing; measure a model that generates text")
    return times, tokens, max(generated, len(times))

"""More training examples, written by a tier of the factory itself from seed cases, and screened.

    FACTORY_API_KEY=… python -m pipelines.synthesize --dataset helpdesk --count 200
    python -m pipelines.synthesize --base-url https://…/v1 --model premium --count 50

The model is shown a few train examples of one label and writes another one like them. What it
writes is kept only if it has the form of an example, passes the guard, is like no seed and nothing
written before, asks nothing that any stored suite asks, and a judge answers it with the same
label. Kept examples are marked as synthetic, which the data card, the lineage of whatever learns
from them and the suites' checks all see. The result is a data set of the object store; validation
and test splits stay as they are. The last line on standard output is one JSON object with what
each screen rejected; exit code 1 with one sentence on standard error when something is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from openai import OpenAI, OpenAIError
from pydantic import ValidationError

from factory import config as factory_config
from factory.catalog.objects import Object, ObjectStore
from factory.cluster.serving import serving
from factory.config import Settings
from factory.evaluation.scorers import first_label, normalise
from factory.evaluation.suite import read as read_suite
from factory.gateway.guard.chain import Chain
from factory.training import dataset
from factory.training.dataset import Example, Turn
from factory.training.errors import TrainingError
from factory.training.screening import CONTAMINATED, DUPLICATE, Filter, Overlap, asked, screen
from pipelines.candidate import asked_of
from pipelines.closing import closed
from pipelines.finetune import find_data

SHOWN = 4
"""Seed examples a model sees before it writes one."""

TRIES = 4
"""Drafts asked for, at most, for each example wanted."""

Chat = list[dict[str, str]]
Ask = Callable[[Sequence[Chat], float], list[str | None]]
"""Answers to conversations at a temperature; None where the model failed."""


class Endpoint:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, base_url: str, key: str, model: str, max_tokens: int, seed: int) -> None:
        self._client = OpenAI(base_url=base_url, api_key=key, timeout=120.0, max_retries=2)
        self._model, self._max_tokens, self._seed = model, max_tokens, seed
        self.error: str | None = None
        """What went wrong last, if anything did."""

    def __call__(self, chats: Sequence[Chat], temperature: float) -> list[str | None]:
        """One answer a conversation."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda at: self._one(*at, temperature), enumerate(chats)))

    def _one(self, number: int, chat: Chat, temperature: float) -> str | None:
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=cast(Any, chat),
                max_tokens=self._max_tokens,
                temperature=temperature,
                seed=self._seed + number,
            )
            return reply.choices[0].message.content or None
        except (OpenAIError, IndexError, TypeError) as error:
            self.error = f"{type(error).__name__}: {error}"
            return None


def request(seeds: Sequence[Example], label: str | None) -> Chat:
    """Asks for one more user message like those of `seeds`."""
    about = f" whose right answer is '{label}'" if label else ""
    told = (
        f"Write one new message of a user{about}. It has the style and length of the examples, "
        "says something else than each of them, and stands alone: no answer, no quotation marks."
    )
    chat: Chat = [{"role": "system", "content": told}]
    for seed in seeds:
        chat.append({"role": "user", "content": "Another one."})
        chat.append({"role": "assistant", "content": asked(seed)})
    return [*chat, {"role": "user", "content": "Another one."}]


def draft(text: str, seed: Example, number: int) -> Example | None:
    """The example that a written message makes with the seed's system message and answer.

    None where it has not the form of one: empty, or many times as long as the seed.
    """
    said = text.strip().strip("\"'`").strip()
    if not said or len(said) > 4 * max(len(asked(seed)), 80):
        return None
    turns = [turn for turn in seed.messages if turn.role == "system"]
    answer = seed.messages[-1]
    try:
        turns.append(Turn(role="user", content=said))
        return Example(
            messages=(*turns, answer),
            id=f"synthetic:{number}",
            group=f"synthetic:{number}",
            label=seed.label,
            synthetic=True,
        )
    except ValidationError:
        return None


def filters(
    seeds: Sequence[Example],
    suites: Overlap,
    guard: Chain,
    verdicts: Mapping[str, str | None],
    labels: Sequence[str],
) -> list[Filter[Example]]:
    """The screens in their order; `verdicts` are the judge's answers by example."""
    known = Overlap()
    for seed in seeds:
        known.add(asked(seed))

    def allowed(example: Example) -> bool:
        decision = guard.look_at_input([asked(example)])
        return decision.act == "allow" and list(decision.texts) == [asked(example)]

    def new(example: Example) -> bool:
        fresh = known.likeness(asked(example)) < DUPLICATE
        if fresh:
            known.add(asked(example))
        return fresh

    def confirmed(example: Example) -> bool:
        said = verdicts.get(example.id)
        if said is None:
            return False
        if labels:
            named = first_label(said, labels)
            return named is not None and named == example.label
        return normalise(said) == normalise(example.messages[-1].content)

    return [
        ("guard", allowed),
        ("asked by a suite", lambda one: suites.share(asked(one)) < CONTAMINATED),
        ("judge", confirmed),
        ("duplicate", new),
    ]


def judged_questions(store: ObjectStore) -> Overlap:
    """What every stored suite asks."""
    index = Overlap()
    for item in store.list("suites"):
        for case in read_suite(item.path).cases:
            index.add(asked_of(case))
    return index


def synthesize(
    settings: Settings,
    name: str,
    write: Ask,
    judge: Ask,
    *,
    count: int,
    out: str,
    seed: int,
    temperature: float,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> tuple[Object, dict[str, int]]:
    """The data set with what was written added, and how many drafts each screen rejected.

    Raises `DatasetError`, `SuiteError` or `TrainingError`, also when nothing passed.
    """
    store = ObjectStore(settings.objects)
    corpus = find_data(store, name)
    parts = [part for part in dataset.SPLITS if (corpus.folder / f"{part}.jsonl").exists()]
    split = dataset.read(corpus.folder, parts)
    labels = tuple(dataset.read_card(corpus.folder).get("labels") or ())
    seeds = [example for example in split["train"] if not example.synthetic]
    rng = random.Random(seed)
    by_label: dict[str | None, list[Example]] = {}
    for example in seeds:
        by_label.setdefault(example.label, []).append(example)
    order = sorted(by_label, key=str)
    chosen = [
        rng.sample(group, min(SHOWN, len(group)))
        for number in range(TRIES * count)
        if (group := by_label[order[number % len(order)]])
    ]
    suites, guard = judged_questions(store), Chain.of(settings.guard)
    kept: list[Example] = []
    rejected: dict[str, int] = {"no answer": 0, "form": 0}
    written = [*seeds]
    for start in range(0, len(chosen), count):
        part = chosen[start : start + count]
        texts = write([request(shown, shown[0].label) for shown in part], temperature)
        drafts = [
            None if text is None else draft(text, shown[0], start + at)
            for at, (text, shown) in enumerate(zip(texts, part, strict=True))
        ]
        rejected["no answer"] += sum(text is None for text in texts)
        rejected["form"] += sum(one is None for one in drafts) - sum(t is None for t in texts)
        formed = [one for one in drafts if one is not None]
        answers = judge([one.chat[:-1] for one in formed], 0.0)
        verdicts = dict(zip((one.id for one in formed), answers, strict=True))
        passed, dropped = screen(formed, filters(written, suites, guard, verdicts, labels))
        for reason, number in dropped.items():
            rejected[reason] = rejected.get(reason, 0) + number
        kept += passed
        written += passed
        say(f"{min(len(kept), count)} of {count} examples kept from {start + len(part)} drafts")
        if len(kept) >= count:
            break
    if not kept:
        reasons = ", ".join(f"{reason} {number}" for reason, number in rejected.items() if number)
        raise TrainingError(f"not one draft passed the screens ({reasons}); nothing was stored")
    kept = kept[:count]
    enlarged = {**split, "train": [*split["train"], *kept]}
    known = {
        key: value
        for key, value in dataset.read_card(corpus.folder).items()
        if key not in ("hash", "counts", "labels", "synthetic", "name")
    }
    card = dataset.card(
        enlarged,
        **known,
        name=out,
        seeds=corpus.hash,
        generated_by={**facts, "temperature": temperature, "seed": seed},
        rejected=rejected,
    )
    meta = {"data_hash": card["hash"], "synthetic": card["synthetic"], "seeds": corpus.hash}

    def fill(folder: Path) -> None:
        dataset.write(folder, enlarged, card)

    return store.put("datasets", out, fill, meta), rejected


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.synthesize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--dataset", default="helpdesk", help="where the seed cases are")
    result.add_argument("--count", type=int, default=100, help="examples wanted")
    result.add_argument("--out", help="name of the new data set; default: DATASET-synthetic")
    result.add_argument("--base-url", help="ends in /v1; default: the gateway that is up")
    result.add_argument("--model", help="endpoint or model that writes; default: the data set's")
    result.add_argument("--judge", help="endpoint or model that judges; default: the writer")
    result.add_argument("--temperature", type=float, default=0.9, help="of the writer")
    result.add_argument("--max-tokens", type=int, default=96, help="longest message")
    result.add_argument("--seed", type=int, default=7, help="decides which seed cases are shown")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(argv)
    key = os.environ.get("FACTORY_API_KEY", "")

    def job() -> dict[str, Any]:
        if options.count < 1:
            raise TrainingError(f"--count is {options.count}; ask for at least one example")
        if not key:
            raise TrainingError(
                "FACTORY_API_KEY is not set; make a key with `factory keys create TEAM`"
            )
        settings = factory_config.load()
        url = options.base_url or serving(settings).url
        model = options.model or options.dataset
        writer = Endpoint(url, key, model, options.max_tokens, options.seed)
        judge = Endpoint(url, key, options.judge or model, options.max_tokens, options.seed)
        stored, rejected = synthesize(
            settings,
            options.dataset,
            writer,
            judge,
            count=options.count,
            out=options.out or f"{options.dataset}-synthetic",
            seed=options.seed,
            temperature=options.temperature,
            facts={"model": model, "judge": options.judge or model},
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        card = dataset.read_card(stored.path)
        return {
            "dataset": str(stored.path),
            "hash": stored.hash,
            "data_hash": card["hash"],
            "counts": card["counts"],
            "synthetic": card["synthetic"],
            "rejected": rejected,
        }

    return closed(job)


if __name__ == "__main__":
    raise SystemExit(main())

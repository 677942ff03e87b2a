"""The pilot's data: a help desk for Python programmers, from the standard library's docstrings.

    python -m pipelines.helpdesk                  # data set and suite into the object store
    python -m pipelines.helpdesk --seed 11 --label json --label os
    python -m pipelines.helpdesk --prompts       # and unlabelled questions, for a teacher to answer

The task: from a description with the names masked, say which module it is. The same Python
version and seed give the same bytes. Ends with one JSON line: paths, hashes, counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory import config
from factory.catalog.objects import Object, ObjectStore
from factory.evaluation.suite import Case, Suite
from factory.evaluation.suite import write as write_suite
from factory.training.dataset import (
    DatasetError,
    Example,
    Turn,
    card,
    dataset_hash,
    split_by_group,
    write,
)
from pipelines.closing import closed
from pipelines.stdlib_docs import DocsError, Member, collect

NAME = "helpdesk"
SUITE_VERSION = 1
# fmt: off
LABELS = (
    "email", "xml", "asyncio", "logging", "os", "multiprocessing", "importlib", "http",
    "unittest", "decimal", "typing", "ast", "mailbox", "urllib", "datetime", "ssl",
)
# fmt: on
MASK = "___"
MAX_WORDS = 32
STRIDE = 24
"""Words between the beginnings of two questions cut from one description."""
MOST_WORDS = 144
"""Words of one description after which no further question begins."""
MIN_WORDS = 4
"""A description with fewer words left after masking says too little to be judged."""

_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")


def pieces(identifier: str) -> list[str]:
    """The words an identifier is made of, in lower case: `HTTPServer.serve_it` has four."""
    return [piece.lower() for piece in _PIECE.findall(identifier)]


def leaks(word: str, label: str, name: str) -> bool:
    """Whether a word of a text gives away the label or a part of the member's dotted name.

    A part of three letters or more is given away by any word of which a piece begins with it, a
    shorter one by a piece equal to it, a dotted component by a word that contains it when it has
    four letters or more.
    """
    low = word.lower()
    wholes = {part.lower() for part in [label, *name.split(".")]}
    if low in wholes or any(len(part) > 3 and part in low for part in wholes):
        return True
    parts = _parts(label, name)
    starts = tuple(part for part in parts if len(part) > 2)
    found = [low, *low.split("_"), *pieces(word)]
    return any(piece in parts or piece.startswith(starts) for piece in found)


@functools.lru_cache(maxsize=4096)
def _parts(label: str, name: str) -> frozenset[str]:
    whole = [part.lower() for part in [label, *name.split(".")]]
    split = [part.lower() for part in re.split(r"[._]", name) if part]
    return frozenset([*whole, *split, *pieces(name), *pieces(label)])


def mask(text: str, label: str, name: str) -> str:
    """The text on one line with every word that leaks replaced by `___`."""
    flat = " ".join(text.split())
    return _WORD.sub(lambda hit: MASK if leaks(hit[0], label, name) else hit[0], flat)


def describe(member: Member) -> str | None:
    """The masked description shown to the model, or None when too little is left of it."""
    text = f"{member.doc} {member.context}"
    words = mask(text, member.label, member.name).split()[:MAX_WORDS]
    return " ".join(words) if _telling(words) else None


def _telling(words: Sequence[str]) -> bool:
    return sum(1 for word in words if re.search(r"[^\W\d_]{2}", word)) >= MIN_WORDS


def system_prompt(labels: Sequence[str]) -> str:
    """What the model is told to do."""
    return f"Which Python module is described? Answer with one of: {', '.join(labels)}."


def prompt(description: str, labels: Sequence[str] = LABELS) -> list[dict[str, str]]:
    """Chat messages that ask for the module behind a description, as the model learned them."""
    return [
        {"role": "system", "content": system_prompt(labels)},
        {"role": "user", "content": description},
    ]


def normal(text: str) -> str:
    """Text with case, masks and punctuation taken out: what decides whether two are the same."""
    return " ".join(_WORD.findall(text.lower().replace(MASK, " ")))


def examples(members: Iterable[Member], labels: Sequence[str]) -> list[Example]:
    """One example a description. A repeated text is kept once, an ambiguous one not at all.

    Raises `DatasetError` for a label without any example.
    """
    found: dict[str, list[tuple[Member, str]]] = defaultdict(list)
    for member in members:
        if (text := describe(member)) is not None:
            found[normal(text)].append((member, text))
    system = system_prompt(labels)
    result = {}
    for same in found.values():
        if len({member.label for member, _ in same}) > 1:
            continue
        member, text = min(same, key=lambda item: item[0].name)
        turns = (
            Turn(role="system", content=system),
            Turn(role="user", content=text),
            Turn(role="assistant", content=member.label),
        )
        result[member.name] = Example(
            messages=turns, id=member.name, group=member.group, label=member.label
        )
    if missing := sorted(set(labels) - {example.label for example in result.values()}):
        raise DatasetError(
            f"label '{missing[0]}': no documented member of the module gives an example; "
            "leave the label out"
        )
    return [result[name] for name in sorted(result)]


def suite(test: Sequence[Example], labels: Sequence[str]) -> Suite:
    """The evaluation suite: the test split, asked without its answers."""
    cases = [Case(id=item.id, messages=item.chat[:-1], expected=item.label or "") for item in test]
    return Suite.build(
        name=NAME,
        version=SUITE_VERSION,
        description="Test split of the help desk data set: name the module from its description.",
        scorer="mentions",
        labels=tuple(labels),
        max_new_tokens=8,
        cases=cases,
    )


def build(
    store: ObjectStore, labels: Sequence[str] = LABELS, seed: int = 7
) -> tuple[Object, Object]:
    """Make the data set and its suite and store both; returns (data set, suite).

    Raises `DatasetError` or `SuiteError`; then nothing is stored.
    """
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise DatasetError("the help desk needs at least two labels, each named once")
    try:
        found, skipped = collect(labels)
    except DocsError as error:
        raise DatasetError(str(error)) from error
    split = split_by_group(examples(found, labels), seed)
    judge = suite(split["test"], labels)
    facts = card(
        split,
        name=NAME,
        seed=seed,
        python=platform.python_version(),
        platform=sys.platform,
        licence="PSF-2.0",
        source="docstrings of the Python standard library",
        made_by="python -m pipelines.helpdesk",
        mask=f"{MASK} for every word that gives away the module or a part of the member's name",
        max_words=MAX_WORDS,
        skipped_modules=sorted(skipped),
        suite_hash=judge.hash,
    )
    meta = {"data_hash": dataset_hash(split), "seed": seed, "python": platform.python_version()}

    def fill_data(folder: Path) -> None:
        write(folder, split, facts)

    def fill_suite(folder: Path) -> None:
        write_suite(judge, folder / f"{NAME}.suite")

    data = store.put("datasets", NAME, fill_data, meta)
    return data, store.put("suites", NAME, fill_suite, {**meta, "suite_hash": judge.hash})


def questions(
    split: Mapping[str, Sequence[Example]], members: Iterable[Member], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Questions of the task's form without an answer, as a running help desk would log them.

    They are later words of the train split's own descriptions, and all words of members that are
    in no split, private ones above all. What belongs to a function or class that another split
    judges by is left out, and what any split says in the same words. Rows of `messages` and `id`.
    """
    train = {example.id for example in split["train"]}
    judged = {one.group for name, part in split.items() if name != "train" for one in part}
    seen = {normal(one.messages[1].content) for part in split.values() for one in part}
    rows: dict[str, dict[str, Any]] = {}
    for member in members:
        if member.group in judged:
            continue
        said = f"{member.doc} {member.context}".split()[: MOST_WORDS + MAX_WORDS]
        words = mask(" ".join(said), member.label, member.name).split()
        begin = STRIDE if member.name in train else 0
        end = max(begin + 1, min(len(words) - MAX_WORDS // 2, MOST_WORDS))
        for start in range(begin, end, STRIDE):
            part = words[start : start + MAX_WORDS]
            name, text = f"{member.name}+{start}", " ".join(part)
            key = normal(text)
            if key in seen or name in rows or not _telling(part):
                continue
            seen.add(key)
            rows[name] = {"id": name, "messages": prompt(text, labels)}
    return list(rows.values())


def build_prompts(store: ObjectStore, labels: Sequence[str] = LABELS, seed: int = 7) -> Object:
    """Store the unlabelled questions of the help desk; returns the object of kind `prompts`.

    Raises `DatasetError`.
    """
    try:
        found, _ = collect(labels)
        inside, _ = collect(labels, inside=True)
    except DocsError as error:
        raise DatasetError(str(error)) from error
    split = split_by_group(examples(found, labels), seed)
    rows = questions(split, inside, labels)
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)

    def fill(folder: Path) -> None:
        (folder / "prompts.jsonl").write_text(text, "utf-8")

    meta = {"seed": seed, "python": platform.python_version(), "count": len(rows)}
    return store.put("prompts", NAME, fill, meta)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.helpdesk", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="decides the split")
    parser.add_argument("--label", action="append", help="a module to learn; repeat for more")
    parser.add_argument("--prompts", action="store_true", help="store unlabelled questions as well")
    options = parser.parse_args(argv)

    def job() -> dict[str, Any]:
        store = ObjectStore(config.load().objects)
        labels = options.label or LABELS
        data, judge = build(store, labels, options.seed)
        asked = build_prompts(store, labels, options.seed) if options.prompts else None
        facts = json.loads((data.path / "card.json").read_text("utf-8"))
        return {
            "dataset": str(data.path),
            "hash": data.hash,
            "data_hash": facts["hash"],
            "counts": facts["counts"],
            "suite": str(judge.path),
            "suite_hash": facts["suite_hash"],
            **({} if asked is None else {"prompts": str(asked.path), **asked.meta}),
        }

    return closed(job)


if __name__ == "__main__":
    raise SystemExit(main())

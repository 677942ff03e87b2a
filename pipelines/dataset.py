"""Bring your own data: files of conversations become a data set of the object store.

    python -m pipelines.dataset --name support chats.jsonl
    python -m pipelines.dataset --name support alpaca.json sharegpt.parquet --validation 0.05
    python -m pipelines.dataset --name support chats.jsonl --skip-malformed --suite helpdesk

Takes `messages`, Alpaca and ShareGPT rows from JSON Lines, JSON and Parquet, read with Ray Data.
Every malformed row is told with its file and line; without --skip-malformed one is enough to
stop. Near-duplicates are kept once, questions that a suite of the store judges by are left out,
and similar examples never land in different splits. Writes `card.json` and `card.md` beside the
data; ends with one JSON line.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory import config
from factory.catalog.objects import Object, ObjectStore
from factory.evaluation.suite import read as read_suite
from factory.training.dataset import (
    DatasetError,
    Example,
    card,
    dataset_hash,
    split_by_group,
    write,
)
from factory.training.duplicates import NEAR, clean
from factory.training.intake import Found, read_files
from pipelines.closing import closed
from pipelines.finetune import Say, ray_cluster, to_stderr

SHOWN = 20
"""Malformed rows told one by one; the card has all of them."""


def judged_by(store: ObjectStore, names: Sequence[str] | None) -> dict[str, list[str]]:
    """Questions of the store's suites by suite: those named, or all.

    Raises `DatasetError` for a name that is not there, or `SuiteError`.
    """
    known = sorted({item.name for item in store.list("suites")})
    if names and (missing := sorted(set(names) - set(known))):
        raise DatasetError(
            f"there is no suite '{missing[0]}' in the object store; known: {', '.join(known)}"
        )
    found: dict[str, list[str]] = {}
    for name in names or known:
        item = store.find("suites", name)
        if item is None:
            continue
        for path in sorted(item.path.glob("*.suite")):
            suite = read_suite(path)
            found[name] = [
                "\n".join(turn.content for turn in case.messages if turn.role == "user")
                for case in suite.cases
            ]
    return found


def make(
    store: ObjectStore, name: str, found: Found, options: argparse.Namespace, say: Say
) -> tuple[Object, dict[str, Any]]:
    """Check, split and store what was read; returns the object and its card.

    Raises `DatasetError` or `SuiteError`; then nothing is stored.
    """
    for text in found.rejected[:SHOWN]:
        say(f"malformed: {text}")
    if len(found.rejected) > SHOWN:
        say(f"malformed: and {len(found.rejected) - SHOWN} more")
    if found.rejected and not options.skip_malformed:
        raise DatasetError(
            f"{len(found.rejected)} of {len(found.rejected) + len(found.examples)} rows are "
            f"malformed, the first: {found.rejected[0]}; mend them, or leave them out with "
            "--skip-malformed"
        )
    against = judged_by(store, options.suite)
    kept, report = clean(found.examples, against, options.near)
    if not kept:
        raise DatasetError("no example is left; give rows that are well-formed and new")
    split = _split(kept, options)
    facts = card(
        split,
        name=name,
        seed=options.seed,
        made_by="python -m pipelines.dataset",
        sources=[path.name for path in options.files],
        read=len(found.examples) + len(found.rejected),
        malformed=list(found.rejected),
        checked_against=sorted(against),
        near_duplicate_threshold=options.near,
        **report,
    )

    def fill(folder: Path) -> None:
        write(folder, split, facts)
        (folder / "card.md").write_text(markdown(facts), "utf-8")

    return store.put("datasets", name, fill, {"data_hash": dataset_hash(split)}), facts


def _split(kept: Sequence[Example], options: argparse.Namespace) -> dict[str, list[Example]]:
    split = split_by_group(kept, options.seed, options.test, options.validation)
    for part, examples in split.items():
        if not examples:
            raise DatasetError(
                f"the {part} split would be empty: {len(kept)} examples are too few; give more"
            )
    return split


def markdown(facts: Mapping[str, Any]) -> str:
    """The data card for a person."""
    lines = [
        f"# Data set {facts['name']}",
        "",
        f"Made by `{facts['made_by']}` from {', '.join(facts['sources'])}, seed {facts['seed']}.",
        f"Content hash `{facts['hash']}`.",
        "",
        "| split | examples |",
        "| --- | --- |",
        *(f"| {part} | {count} |" for part, count in facts["counts"].items()),
        "",
        f"{facts['read']} rows were read. {len(facts['malformed'])} were malformed.",
        "",
        "## Left out",
        "",
    ]
    for suite, names in sorted(facts["contaminated"].items()):
        lines.append(f"- {len(names)} that suite `{suite}` judges by")
    repeated = sum(len(names) - 1 for names in facts["near_duplicates"])
    lines += [
        f"- {repeated} near-duplicates (similarity of at least "
        f"{facts['near_duplicate_threshold']:g}), one of each kept",
        f"- {len(facts['malformed'])} malformed",
        "",
        "## To look at",
        "",
        f"{len(facts['contradictions'])} times near-duplicates have different answers; they are "
        "kept, in one split.",
    ]
    lines += [f"- {', '.join(names)}" for names in facts["contradictions"][:SHOWN]]
    if facts["labels"]:
        lines += ["", "## Labels", "", "| label | examples |", "| --- | --- |"]
        lines += [f"| {name} | {sum(by.values())} |" for name, by in facts["labels"].items()]
    return "\n".join(lines) + "\n"


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="python -m pipelines.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("files", nargs="+", type=Path, help=".jsonl, .json or .parquet files")
    result.add_argument("--name", required=True, help="name of the data set")
    result.add_argument("--validation", type=_share, default=0.1, help="share that is held out")
    result.add_argument("--test", type=_share, default=0.1, help="share that is never trained on")
    result.add_argument("--seed", type=int, default=7, help="decides the split")
    result.add_argument("--suite", action="append", help="suite not to give away; all if none")
    result.add_argument("--near", type=_share, default=NEAR, help="similarity of near-duplicates")
    result.add_argument("--skip-malformed", action="store_true", help="leave malformed rows out")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(argv)

    def job() -> dict[str, Any]:
        store = ObjectStore(config.load().objects)
        with ray_cluster():
            found = read_files(options.files)
        item, facts = make(store, options.name, found, options, to_stderr)
        return {
            "dataset": str(item.path),
            "hash": item.hash,
            "data_hash": facts["hash"],
            "counts": facts["counts"],
            "read": facts["read"],
            "malformed": len(facts["malformed"]),
            "near_duplicates": sum(len(names) - 1 for names in facts["near_duplicates"]),
            "contaminated": {name: len(ids) for name, ids in facts["contaminated"].items()},
            "contradictions": len(facts["contradictions"]),
        }

    return closed(job)


if __name__ == "__main__":
    raise SystemExit(main())

"""Make `lexicon.json` from WordNet 3.0: what may replace what, and what means the opposite.

    python -m factory.gateway.semantic.wordnet /usr/share/wordnet EMBEDDER/tokenizer.json

Needed only to make the shipped file again (Debian's package `wordnet-base` has the folder). The
words are those of the tokenizer's vocabulary, whose order is about that of their frequency.
Synonyms are taken from a word's frequent senses only: rare senses make everything a synonym.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

_PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_LETTERS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_SHARE = 0.15
"""Least share of a word's uses, by part of speech, that makes a sense frequent."""
_NOTICE = (
    "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. "
    "Permission to use, copy, modify and distribute this software and database and its "
    "documentation for any purpose and without fee or royalty is granted under the WordNet 3.0 "
    "license, https://wordnet.princeton.edu/license-and-commercial-use. Provided AS IS, without "
    "warranties of any kind. Modified: common words, frequent senses only."
)


def main(folder: Path, tokenizer: Path, target: Path) -> None:
    """Write `target` from WordNet's folder and a WordPiece `tokenizer.json`."""
    vocabulary = json.loads(tokenizer.read_text("utf-8"))["model"]["vocab"]
    words = [
        word
        for word, _ in sorted(vocabulary.items(), key=lambda item: item[1])
        if word.isalpha() and word.isascii() and len(word) > 1
    ]
    known = set(words)
    shares, parts = _senses(folder)
    synonyms: set[tuple[str, ...]] = set()
    antonyms: set[tuple[str, str]] = set()
    for part in ("noun", "verb", "adj", "adv"):
        members, opposites = _synsets(folder / f"data.{part}")
        for key, lemmas in members.items():
            frequent = sorted(
                {
                    lemma
                    for lemma in lemmas
                    if lemma in known and shares.get((lemma, part, key), 0.0) >= _SHARE
                }
            )
            if len(frequent) > 1:
                synonyms.add(tuple(frequent))
        for first, second in opposites:
            if first in known and second in known:
                antonyms.add((min(first, second), max(first, second)))
    lexicon = {
        "notice": _NOTICE,
        "synonyms": [" ".join(group) for group in sorted(synonyms)],
        "antonyms": [" ".join(pair) for pair in sorted(antonyms)],
        "irregular": " ".join(f"{form}:{lemma}" for form, lemma in _irregular(folder, known)),
        "verbs": " ".join(word for word in words if parts.get(word) == "verb"),
        "modifiers": " ".join(word for word in words if parts.get(word) in ("adj", "adv")),
        "common": " ".join(words[:8000]),
    }
    target.write_text(json.dumps(lexicon, indent=0) + "\n", "utf-8")


def _senses(folder: Path) -> tuple[dict[tuple[str, str, str], float], dict[str, str]]:
    """Share of each (word, part, synset) among the word's uses, and each word's chief part."""
    counts: dict[str, int] = {}
    for line in (folder / "cntlist.rev").read_text("utf-8").splitlines():
        key, sense, uses_of_it = line.split()
        lemma, rest = key.split("%", 1)
        counts[f"{lemma}%{_PARTS[rest[0]]}%{sense}"] = int(uses_of_it)
    shares: dict[tuple[str, str, str], float] = {}
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"index.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            fields = line.split()
            lemma, synsets = fields[0], fields[-int(fields[2]) :]
            seen = [
                counts.get(f"{lemma}%{part}%{number}", 0) for number in range(1, len(synsets) + 1)
            ]
            # One extra use each: a sense nobody counted is rare, not impossible.
            total = sum(seen) + len(seen)
            uses[lemma][part] += total
            for count, synset in zip(seen, synsets, strict=True):
                shares[(lemma, part, synset)] = (count + 1) / total
    return shares, {lemma: counter.most_common(1)[0][0] for lemma, counter in uses.items()}


def _synsets(path: Path) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Words of each synset by its offset, and the pairs of words marked as antonyms."""
    members: dict[str, list[str]] = {}
    pointers: list[tuple[str, str, int, int]] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split(" | ")[0].split()
        size = int(fields[3], 16)
        members[fields[0]] = [fields[4 + 2 * place].lower().split("(")[0] for place in range(size)]
        start = 4 + 2 * size
        for place in range(int(fields[start])):
            symbol, offset, part, ends = fields[start + 1 + 4 * place : start + 5 + 4 * place]
            if symbol == "!" and path.suffix == f".{_LETTERS[part]}":
                pointers.append((fields[0], offset, int(ends[:2], 16), int(ends[2:], 16)))
    found = [
        (members[here][source - 1], members[there][target - 1])
        for here, there, source, target in pointers
        if source and target
    ]
    return members, found


def _irregular(folder: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for part in ("verb", "noun"):
        for line in (folder / f"{part}.exc").read_text("utf-8").splitlines():
            form, lemma = line.split()[:2]
            if form in known and lemma in known and form != lemma:
                seen.setdefault(form, lemma)
    yield from sorted(seen.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).with_name("lexicon.json"))

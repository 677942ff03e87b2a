"""Make labelled pairs for the semantic cache: paraphrases, and pairs that only look alike.

    python -m benchmarks.pairs --out pairs.csv [--intents FILE.csv] [--seed N]

Writes `a,b,same,kind`. Honestly, this is how they are made: the wordings of `wordings.txt` were
written by hand for this benchmark (other subjects, wordings and names than those the model is
fitted on; the guard's word lists were mended with some of them in view), and a program fills their
slots and breaks the meaning on purpose: another number, another name, a negation, two names
exchanged, an opposite, or a neighbouring question. `--intents` takes real customer questions
(columns `text, category`): a frame of politeness or a contraction written out keeps their meaning;
a negation, another number, an opposite or a question of another category does not. Two questions of
one category are never called the same: they often are not.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from factory.gateway.semantic.fitting import Pair, negated, pairs_from

SLOTS: dict[str, tuple[str, ...]] = {
    "bank": ("Northbank", "Meridian", "Castle Trust", "Bluewater"),
    "place": ("Lisbon", "Denver", "Cairo", "Seoul", "Geneva", "Lima"),
    "account": ("checking", "savings", "joint", "business"),
    "coin": ("euros", "francs", "pesos", "rupees"),
    "service": ("Dropbox", "Slack", "Zoom", "GitHub", "Figma"),
    "cloud": ("AWS", "Azure", "Hetzner", "Linode"),
    "who": ("Omar", "Ingrid", "Carlos", "Mei", "Fatima", "Liam"),
    "animal": ("dog", "cat", "parrot", "rabbit", "hamster"),
    "plant": ("tomatoes", "roses", "basil", "orchids", "carrots"),
    "part": ("battery", "screen", "keyboard", "charger", "fan"),
    "car": ("Tesla", "Volvo", "Corolla", "Mustang"),
    "sport": ("yoga", "boxing", "swimming", "spinning"),
    "when": ("Monday", "Wednesday", "Friday", "Sunday"),
    "team": ("Arsenal", "Bayern", "Ajax", "Porto"),
    "n": ("2", "7", "15", "24", "60", "90", "250", "1000"),
}


_OPPOSITES = (
    ("before", "after"),
    ("enable", "disable"),
    ("activate", "deactivate"),
    ("more", "less"),
    ("better", "worse"),
    ("open", "close"),
    ("maximum", "minimum"),
    ("add", "remove"),
    ("increase", "decrease"),
    ("buy", "sell"),
    ("send", "receive"),
    ("allowed", "forbidden"),
    ("always", "never"),
    ("all", "none"),
    ("on", "off"),
    ("to", "from"),
    ("high", "low"),
    ("start", "end"),
    ("cheaper", "dearer"),
    ("accept", "refuse"),
    ("lost", "found"),
    ("incoming", "outgoing"),
)
_CONTRACTIONS = (
    ("what's", "what is"),
    ("i'm", "i am"),
    ("i'd like", "i would like"),
    ("can't", "cannot"),
    ("don't", "do not"),
    ("doesn't", "does not"),
    ("isn't", "is not"),
    ("hasn't", "has not"),
    ("i've", "i have"),
    ("it's", "it is"),
    ("didn't", "did not"),
    ("wasn't", "was not"),
)
_FRAMES = (
    "{} Please help.",
    "Hello, {}",
    "{} Thanks in advance!",
    "Could you tell me, {}",
    "Sorry to bother you, {}",
)


def opposite(text: str, rng: random.Random) -> str | None:
    """The text with one word turned into its opposite, or None."""
    found = []
    for left, right in _OPPOSITES:
        for one, other in ((left, right), (right, left)):
            changed = re.sub(rf"\b{one}\b", other, text, count=1)
            if changed != text and not (one == "to" and "from" not in text):
                found.append(changed)
    return rng.choice(found) if found else None


def renumbered(text: str, rng: random.Random) -> str | None:
    """The text with its first number changed, or None."""
    match = re.search(r"\d+", text)
    if match is None:
        return None
    number = int(match.group()) + rng.choice((1, 2, 5, 10))
    return text[: match.start()] + str(number) + text[match.end() :]


def from_wordings(rng: random.Random, per_line: int) -> Iterator[Pair]:
    """Pairs of the wordings in `wordings.txt`, with opposites."""
    wordings = Path(__file__).with_name("wordings.txt").read_text("utf-8").splitlines()
    for pair in pairs_from(wordings, SLOTS, rng, per_line):
        yield pair
        if pair.kind == "paraphrase":
            changed = opposite(rng.choice((pair.a, pair.b)), rng)
            if changed:
                yield Pair(pair.a, changed, False, "opposite")


def from_intents(path: Path, rng: random.Random, limit: int) -> Iterator[Pair]:
    """Pairs made from real questions."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(stream)]
    for text, category in rng.sample(rows, min(limit, len(rows))):
        lowered = text[0].lower() + text[1:] if text[:2] not in ("I ", "I'") else text
        yield Pair(text, rng.choice(_FRAMES).format(lowered), True, "frame")
        for short, long in _CONTRACTIONS:
            if short in text.lower():
                written = re.sub(re.escape(short), long, text, count=1, flags=re.I)
                yield Pair(text, written, True, "contraction")
                break
        for kind, changed in (
            ("negation", negated(text, rng)),
            ("opposite", opposite(text, rng)),
            ("number", renumbered(text, rng)),
        ):
            if changed:
                yield Pair(text, changed, False, kind)
        other = rng.choice(rows)
        if other[1] != category:
            yield Pair(text, other[0], False, "other")


def unique(pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Each pair once, and never a pair that differs in label only."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        key = (pair.a.lower(), pair.b.lower())
        if key not in seen and key[0] != key[1]:
            seen.add(key)
            yield pair


def main() -> None:
    """Write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--intents", type=Path, help="real questions: columns text, category")
    parser.add_argument("--per-line", type=int, default=12, help="fillings of each wording")
    parser.add_argument("--limit", type=int, default=600, help="real questions taken")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    pairs = list(unique(from_wordings(rng, chosen.per_line)))
    if chosen.intents is not None:
        pairs += unique(from_intents(chosen.intents, rng, chosen.limit))
    rng.shuffle(pairs)
    with chosen.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("a", "b", "same", "kind"))
        writer.writerows((pair.a, pair.b, int(pair.same), pair.kind) for pair in pairs)
    print(f"{len(pairs)} pairs in {chosen.out}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Fit the pair model again: make pairs, fit a logistic regression, write `weights.json`.

    python -m factory.gateway.semantic.fitting EMBEDDER_FOLDER

The pairs come from three sources that ship with Python and with this project, none from a customer:
questions written by hand (`alike.txt`), the wordings of `examples.txt` with their slots filled, and
first sentences of the standard library's documentation. A pair is the same when two wordings share
a meaning; it differs when one side got another number, name, noun, verb, a negation, swapped ends,
or when it is simply the neighbouring question. Pairs that the guard (`differences.py`) tells apart
need no model, so the model learns only from what passes it. A fixed seed makes the file
reproducible.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.embedding import StaticEmbedder
from factory.gateway.semantic.lexicon import Lexicon
from factory.gateway.semantic.reading import read
from factory.gateway.semantic.score import FEATURES, PairModel, Weights
from factory.gateway.semantic.words import CARRIERS, FUNCTION

SLOTS: dict[str, tuple[str, ...]] = {
    "product": ("the headset", "the blender", "Netflix", "the tent", "Spotify", "the router"),
    "city": ("Oslo", "Madrid", "Chicago", "Nairobi", "Lyon", "Osaka"),
    "day": ("Monday", "Tuesday", "Thursday", "Saturday", "Sunday"),
    "month": ("January", "April", "August", "October"),
    "format": ("PDF", "CSV", "JSON", "PNG", "docx", "XML"),
    "lang": ("Python", "Java", "Rust", "ruby", "Go", "perl"),
    "os": ("Windows", "Ubuntu", "macOS", "Fedora"),
    "db": ("Postgres", "MySQL", "Oracle", "sqlite"),
    "drug": ("ibuprofen", "aspirin", "paracetamol", "insulin", "metformin"),
    "dish": ("lasagne", "banana bread", "pizza", "risotto", "meatloaf"),
    "food": ("butter", "milk", "eggs", "gluten", "sugar", "peanuts"),
    "device": ("iPhone", "laptop", "tablet", "camera", "watch", "printer"),
    "country": ("Norway", "Brazil", "Japan", "Kenya", "Canada"),
    "currency": ("euros", "dollars", "yen", "pounds"),
    "book": ("Dune", "Emma", "Middlemarch", "Dracula"),
    "person": ("Alice", "Marcus", "Priya", "Tomas", "Yuki", "Hannah"),
    "branch": ("main", "develop", "release", "hotfix"),
    "n": ("3", "5", "12", "30", "45", "120", "404"),
}
"""What fills a slot; another value of the same slot is a swap."""

_MODULES = (
    *("pathlib", "json", "csv", "shutil", "socket"),
    *("zipfile", "statistics", "calendar", "email", "logging"),
)
_AUX = re.compile(r"\b(do|does|did|can|should|is|are|was|has|have|will|may|must)\b", re.I)
_FRAMES = (
    "{}",
    "Please tell me: {}",
    "Hi, {}",
    "I would like to know: {}",
    "{} Thanks!",
    "Quick question: {}",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions, whether they mean the same, and how the pair was made."""

    a: str
    b: str
    same: bool
    kind: str


def pairs_from(
    lines: Sequence[str],
    slots: Mapping[str, tuple[str, ...]],
    rng: random.Random,
    per_line: int = 20,
) -> Iterator[Pair]:
    """Pairs from lines of wordings between bars. Every kind of difference is made on purpose."""
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    for number, line in enumerate(lines):
        wordings = line.strip().split("|")
        for _ in range(per_line):
            values = filled(wordings, slots, rng)
            first, second = rng.sample(wordings, 2) if len(wordings) > 1 else (line, line)
            a, b = first.format(**values), second.format(**values)
            yield Pair(a, b, True, "paraphrase")
            twin = rng.choice((first, first, second))
            yield from _swapped(first, twin, values, slots, rng)
            said = twin.format(**values)
            for kind, changed in (("negation", negated(said, rng)), ("added", narrowed(said, rng))):
                if changed:
                    yield Pair(a, changed, False, kind)
            other = lines[(number + rng.choice((1, 2, 3))) % len(lines)].split("|")
            yield Pair(a, rng.choice(other).format(**filled(other, slots, rng)), False, "other")


def _swapped(
    first: str,
    twin: str,
    values: Mapping[str, str],
    slots: Mapping[str, tuple[str, ...]],
    rng: random.Random,
) -> Iterator[Pair]:
    """One slot with another value, and two slots of one kind with their values exchanged."""
    names = [name for name in re.findall(r"{(\w+)}", twin) if name in re.findall(r"{(\w+)}", first)]
    if names:
        name = rng.choice(names)
        wanted = [v for v in slots[name.rstrip("2")] if v not in values.values()]
        changed = {**values, name: rng.choice(wanted)}
        kind = "number" if name == "n" else "entity"
        yield Pair(first.format(**values), twin.format(**changed), False, kind)
    doubles = [name for name in names if name + "2" in names]
    if doubles:
        one = doubles[0]
        changed = {**values, one: values[one + "2"], one + "2": values[one]}
        symmetric = "differ" in twin or "combin" in twin or "with {" in twin
        if not symmetric:
            yield Pair(first.format(**values), twin.format(**changed), False, "direction")


def filled(
    wordings: Sequence[str], slots: Mapping[str, tuple[str, ...]], rng: random.Random
) -> dict[str, str]:
    """One value for each slot of the wordings; `{x2}` differs from `{x}`."""
    values: dict[str, str] = {}
    for name in sorted({name for wording in wordings for name in re.findall(r"{(\w+)}", wording)}):
        options = [v for v in slots[name.rstrip("2")] if v not in values.values()]
        values[name] = rng.choice(options)
    return values


def negated(text: str, rng: random.Random) -> str | None:
    """The text with a negation in one of its usual places, or None when there is none."""
    ways = []
    if " with " in text:
        ways.append(text.replace(" with ", " without ", 1))
    match = _AUX.search(text)
    if match and not re.search(r"n't|\bnot\b|without", text):
        words = text[match.end() :].split(" ", 3)
        ways.append(text[: match.end()] + " ".join([*words[:2], "not", *words[2:]]))
        if match.group().lower() not in ("can", "will", "may", "must"):
            ways.append(text[: match.end()] + "n't" + text[match.end() :])
    return rng.choice(ways) if ways else None


MODIFIERS = (
    *("business", "shared", "monthly", "foreign", "second", "previous", "broken", "annual"),
    *("digital", "external", "student", "premium", "emergency", "weekend", "hidden", "spare"),
)
"""Words that narrow the noun after them to something else."""


def narrowed(text: str, rng: random.Random) -> str | None:
    """The text with one more word before a noun, or None when it has no plain noun."""
    nouns = [w.raw for w in read(text).words if not w.acts and w.raw in text.split()]
    if not nouns:
        return None
    noun = rng.choice(nouns)
    return _put(text, noun, f"{rng.choice(MODIFIERS)} {noun}")


def documented(rng: random.Random, limit: int = 100) -> list[str]:
    """First sentences of the standard library's documentation, as questions in many words."""
    found: set[str] = set()
    for name in _MODULES:
        module = import_module(name)
        for _, member in inspect.getmembers(module):
            for thing in [member, *(vars(member).values() if inspect.isclass(member) else ())]:
                text = inspect.getdoc(thing) if callable(thing) else None
                sentence = re.split(r"(?<=[.])\s|\n\n", text)[0] if text else ""
                sentence = " ".join(sentence.split()).rstrip(".")
                if 5 <= len(sentence.split()) <= 16 and sentence[0].isupper():
                    found.add(f"What will {sentence[0].lower()}{sentence[1:]}?")
    return rng.sample(sorted(found), min(limit, len(found)))


def reworded(
    text: str, embedder: StaticEmbedder, lexicon: Lexicon, rng: random.Random
) -> Iterator[Pair]:
    """A documentation sentence with a synonym, a near word, one word more, or two exchanged."""
    words = read(text, lexicon).words
    plain = [word for word in words if word.raw.isalpha() and word.raw in text]
    if len(plain) < 3:
        return
    yield Pair(text, rng.choice(_FRAMES).format(text), True, "frame")
    target = rng.choice(plain)
    vocabulary = near(target.raw, embedder)
    synonyms = [word for word in vocabulary if lexicon.related(lexicon.lemma(word), target.lemma)]
    others = [
        word
        for word in vocabulary
        if not lexicon.related(lexicon.lemma(word), target.lemma)
        and word not in CARRIERS | FUNCTION
    ]
    if synonyms:
        yield Pair(text, _put(text, target.raw, rng.choice(synonyms)), True, "synonym")
    if others:
        yield Pair(text, _put(text, target.raw, others[0]), False, "word")
        more = f"{rng.choice(others)} {target.raw}"
        yield Pair(text, _put(text, target.raw, more), False, "added")
        shorter = " ".join(_put(text, target.raw, "").split())
        yield Pair(text, shorter, False, "dropped")


def _put(text: str, old: str, new: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, text, count=1)


_NEAR: dict[str, list[str]] = {}


def near(word: str, embedder: StaticEmbedder, count: int = 8) -> list[str]:
    """Words the embedder takes for similar: the hardest to tell apart."""
    if not _NEAR:
        words = [w for w in _common() if len(w) > 3]
        _NEAR[""] = words
        _NEAR["\0"] = []
        near.matrix = embedder.encode(words)  # type: ignore[attr-defined]
    if word not in _NEAR:
        scores = near.matrix @ embedder.encode_one(word)  # type: ignore[attr-defined]
        best = np.argsort(-scores)[: count + 1]
        _NEAR[word] = [_NEAR[""][i] for i in best if _NEAR[""][i] != word]
    return _NEAR[word]


def _common() -> list[str]:
    file = resources.files("factory.gateway.semantic").joinpath("lexicon.json")
    return list(json.loads(file.read_text("utf-8"))["common"].split())


def handwritten(lines: Sequence[str]) -> Iterator[Pair]:
    """Pairs of lines `one|same|same||other|other`: each wording against the first two."""
    for line in lines:
        same, _, other = line.strip().partition("||")
        if not same or same.startswith("#"):
            continue
        first, *more = same.split("|")
        for text in more:
            yield Pair(first, text, True, "paraphrase")
        for place, text in enumerate(other.split("|") if other else ()):
            yield Pair(first, text, False, "alike")
            if more:
                yield Pair(more[place % len(more)], text, False, "alike")


def training_pairs(embedder: StaticEmbedder, seed: int = 0) -> list[Pair]:
    """All pairs the model is fitted on."""
    rng = random.Random(seed)
    lexicon = Lexicon.default()
    shipped = resources.files("factory.gateway.semantic")
    pairs = list(
        pairs_from(shipped.joinpath("examples.txt").read_text("utf-8").splitlines(), SLOTS, rng)
    )
    pairs.extend(handwritten(shipped.joinpath("alike.txt").read_text("utf-8").splitlines()))
    for text in documented(rng):
        pairs.extend(reworded(text, embedder, lexicon, rng))
    return pairs


SIGNS = {
    "rest_verbs": -1,
    "rest_things": -1,
    "inserted": -1,
    "roles": -1,
}
"""Which way a feature may count: 1 (for the same) unless told here.

A swapped word leaves everything else alike, so an unbounded fit learns that likeness is a bad
sign. That is a fact about how pairs are made, not about questions."""


def fit(
    x: NDArray[np.float64], y: NDArray[np.bool_], penalty: float = 1.0
) -> tuple[NDArray[np.float64], float]:
    """Slopes and intercept of a balanced logistic regression with an L2 penalty and `SIGNS`."""
    from scipy.optimize import minimize

    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / scale
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum()) * len(y)
    sign = np.where(y, 1.0, -1.0)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (z @ theta[:-1] + theta[-1])
        value = (weight * np.logaddexp(0, -margin)).sum() + penalty / 2 * (theta[:-1] ** 2).sum()
        pull = -weight * sign / (1 + np.exp(margin))
        return float(value), np.append(z.T @ pull + penalty * theta[:-1], pull.sum())

    limits: dict[int, tuple[float | None, float | None]] = {
        1: (0, None),
        -1: (None, 0),
    }
    bounds = [limits[SIGNS.get(name, 1)] for name in FEATURES] + [(None, None)]
    found = minimize(loss, np.zeros(z.shape[1] + 1), jac=True, bounds=bounds, method="L-BFGS-B")
    slopes = found.x[:-1] / scale
    return slopes, float(found.x[-1] - (slopes * mean).sum())


def main(folder: Path) -> None:
    """Fit on all pairs, say how it does on five folds, write `weights.json` beside this file."""
    embedder = StaticEmbedder.load(folder)
    pairs = training_pairs(embedder)
    model = PairModel(embedder, Weights((0.0,) * len(FEATURES), 0.0))
    rows, labels, passed = [], [], []
    for pair in pairs:
        compared = model.compare(pair.a, pair.b)
        if compared.verdict.same:
            rows.append(compared.features)
            labels.append(pair.same)
            passed.append(pair)
    x, y = np.array(rows), np.array(labels)
    held = np.zeros(len(y))
    fold = np.arange(len(y)) * 5 // len(y)
    for one in range(5):
        slopes, intercept = fit(x[fold != one], y[fold != one])
        held[fold == one] = 1 / (1 + np.exp(-(x[fold == one] @ slopes + intercept)))
    slopes, intercept = fit(x, y)
    weights = {
        "features": list(FEATURES),
        "slopes": [round(float(slope), 6) for slope in slopes],
        "intercept": round(intercept, 6),
    }
    Path(__file__).with_name("weights.json").write_text(json.dumps(weights, indent=1) + "\n")
    different = sum(not pair.same for pair in pairs)
    equal = len(pairs) - different
    print(f"{equal} pairs that are the same; the guard passed {y.sum()}", file=sys.stderr)
    print(f"{different} pairs that differ; the guard passed {(~y).sum()}", file=sys.stderr)
    for threshold in (0.5, 0.8, 0.9, 0.95, 0.98):
        hits = held >= threshold
        print(
            f"score >= {threshold}: hit {(hits & y).sum() / equal:.3f} of the same, "
            f"{(hits & ~y).sum() / different:.4f} of the different",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Fit the wording model again: read the examples, fit, write `injection_weights.json`.

    python -m factory.gateway.guard.injection_fitting

Every example was written for this project; `tests/gateway/guard` keeps others, written before them,
to judge the result by. To the harmless ones come ordinary questions, those of the semantic cache's
fitting, and paragraphs of the standard library's documentation. The offset is chosen on held-out
folds, by the shares of harmless texts that may pass the filter's default threshold: `NEAR` of those
near to attacks, `ORDINARY` of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module, resources
from pathlib import Path

import numpy as np
from pydantic_core import to_json
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from factory.gateway.guard.injection_wording import (
    AT_THRESHOLD,
    SHORT,
    WEIGHTS,
    WORD,
    Wording,
    terms,
)
from factory.gateway.guard.prompt_injection import plain_words

EXAMPLES = "injection_examples.txt"
NEAR, ORDINARY = 0.03, 0.003
"""Shares of harmless texts that may pass the threshold."""
PENALTY = 30.0
"""Inverse strength of the regression's penalty."""
LEAST_WEIGHT = 0.15
FOLDS = 10
DIGITS = 3

_MODULES = ("argparse", "csv", "email", "json", "logging", "os", "socket", "subprocess", "typing")


def examples(lines: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Texts and whether they are attacks. Raises `ValueError` for a line that is neither."""
    texts, attacks = [], []
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.strip():
            continue
        if line[:2] not in ("+ ", "- "):
            raise ValueError(f"line {number} of {EXAMPLES} begins with neither '+ ' nor '- '")
        texts.append(line[2:].strip().replace("\\n", "\n"))
        attacks.append(line[0] == "+")
    return texts, attacks


def ordinary() -> list[str]:
    """Harmless texts that nobody wrote with attacks in mind."""
    asked = resources.files("factory.gateway.semantic")
    found = [
        wording.strip()
        for name in ("alike.txt", "examples.txt")
        for line in asked.joinpath(name).read_text("utf-8").splitlines()
        if not line.startswith("#")
        for wording in line.split("|")
        if wording.strip()
    ]
    for module in map(import_module, _MODULES):
        for _, member in inspect.getmembers(module):
            told = inspect.getdoc(member) if callable(member) else None
            found += [part.strip() for part in (told or "").split("\n\n") if len(part) > 60]
    return list(dict.fromkeys(found))


def fitted(texts: Sequence[str], attacks: Sequence[bool], offset: float = 0.0) -> Wording:
    """The model of some examples, its own intercept left out for `offset`."""
    vectorizer = TfidfVectorizer(
        analyzer=lambda text: list(terms(WORD.findall(plain_words(text)))),
        sublinear_tf=True,
        norm=None,
    )
    table = vectorizer.fit_transform(texts)
    squares = np.asarray(table.multiply(table).sum(axis=1)).ravel()
    table = table.multiply(1 / np.sqrt(squares + SHORT**2)[:, None]).tocsr()
    model = LogisticRegression(C=PENALTY, max_iter=5000, class_weight="balanced")
    model.fit(table, np.asarray(attacks))
    known = zip(vectorizer.get_feature_names_out(), vectorizer.idf_, model.coef_[0], strict=True)
    # A term of next to no weight counts like one that was never seen.
    chosen = {
        str(name): (round(float(idf), DIGITS), round(float(weight), DIGITS))
        for name, idf, weight in known
        if abs(weight) >= LEAST_WEIGHT
    }
    return Wording(chosen, round(float(vectorizer.idf_.max()), DIGITS), offset)


def offset(texts: Sequence[str], attacks: Sequence[bool], near: int) -> tuple[float, float]:
    """What to add to the log odds, and the share of held-out attacks that are then found.

    The texts from place `near` on are ordinary ones.
    """
    odds = np.zeros(len(texts))
    truth = np.asarray(attacks)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for kept, held in folds.split(odds, truth):
        model = fitted([texts[i] for i in kept], truth[kept].tolist())
        for i in held:
            odds[i] = model.log_odds(WORD.findall(plain_words(texts[i])))
    background = np.arange(len(texts)) >= near
    bound = max(
        float(np.quantile(odds[~truth & ~background], 1 - NEAR)),
        float(np.quantile(odds[background], 1 - ORDINARY)),
    )
    return AT_THRESHOLD - bound, float(np.mean(odds[truth] > bound))


def main() -> None:
    """Fit on all examples and write the weights beside this file."""
    raw = (resources.files(__package__) / EXAMPLES).read_text("utf-8")
    texts, attacks = examples(raw.splitlines())
    near, background = len(texts), ordinary()
    texts, attacks = texts + background, attacks + [False] * len(background)
    added, recall = offset(texts, attacks, near)
    model = fitted(texts, attacks)
    rows = [[name, *values] for name, values in sorted(model.terms.items())]
    written = to_json({"offset": round(added, DIGITS), "unknown": model.unknown, "terms": rows})
    Path(__file__).with_name(WEIGHTS).write_bytes(written + b"\n")
    print(
        f"{sum(attacks)} attacks, {near - sum(attacks)} harmless texts near to them and "
        f"{len(background)} ordinary ones; held-out recall {recall:.2f}; {len(rows)} terms"
    )


if __name__ == "__main__":
    main()

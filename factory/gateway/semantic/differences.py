"""The guard of the semantic cache: two questions that look alike, and what keeps them apart.

    same("Can I send $20 to Paris?", "Can I send $50 to Paris?")
    # Verdict(same=False, reasons=("numbers differ: 20 $ / 50 $",))

Cosine similarity cannot tell a question from its negation (0.83 to 0.9997 between the two). So
what must agree is compared by rule: numbers, names, negation, opposites, direction, what is asked,
and any word that stands in another's place. A rule that is unsure says no: a miss costs one model
call, a false hit costs trust. English only; other languages match only word for word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

from factory.gateway.semantic.lexicon import Lexicon
from factory.gateway.semantic.reading import Reading, Word, read
from factory.gateway.semantic.words import (
    ALONE,
    CLASHES,
    DIRECTIONS,
    FUNCTION,
    OPPOSITES,
    SYMMETRIC,
)

LEAST_KNOWN = 0.6
"""Least share of known English words for the rules to be trusted."""

MAX_WORDS = 40
"""Questions with more content words are matched only word for word."""

_SPECIAL = frozenset({"time", "duration", "person", "count", "cost"})
"""What a plain statement does not ask for, though it may well ask how or why."""
_FIRST = frozenset(["i", "me", "my", "mine", "we", "us", "our", "ours", "myself"])
_OTHERS = frozenset(["he", "him", "his", "she", "her", "hers", "they", "them", "their", "theirs"])
_FUTURE = frozenset(["will", "shall", "ll"])
_PAST = frozenset(
    [
        "has",
        "hasn",
        "have",
        "haven",
        "did",
        "didn",
        "was",
        "wasn",
        "were",
        "weren",
        "had",
        "hadn",
        "been",
    ]
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two questions may share an answer, as far as rules can tell."""

    same: bool
    """No rule found a difference."""
    reasons: tuple[str, ...]
    """What differs; empty when `same`."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which content words of two questions correspond."""

    pairs: tuple[tuple[int, int], ...]
    """Places in the first and in the second question, by the first."""
    exact: int
    """How many pairs are the same word."""
    rest_a: tuple[int, ...]
    """Places of the first question that have no partner."""
    rest_b: tuple[int, ...]
    """Places of the second."""


def same(a: str | Reading, b: str | Reading, lexicon: Lexicon | None = None) -> Verdict:
    """Whether nothing keeps the two apart. Symmetric."""
    lexicon = lexicon or Lexicon.default()
    first = read(a, lexicon) if isinstance(a, str) else a
    second = read(b, lexicon) if isinstance(b, str) else b
    return judge(first, second, align(first, second, lexicon), lexicon)


def judge(a: Reading, b: Reading, alignment: Alignment, lexicon: Lexicon) -> Verdict:
    """`same` for readings that are aligned already; stops at the first difference."""
    if a.text == b.text:
        return Verdict(True, ())
    for reason in _differences(a, b, alignment, lexicon):
        return Verdict(False, (reason,))
    return Verdict(True, ())


def align(a: Reading, b: Reading, lexicon: Lexicon) -> Alignment:
    """Pair equal words first, then related ones, each with the nearest free partner in order."""
    free_b = set(range(len(b.words)))
    free_a = list(range(len(a.words)))
    pairs: list[tuple[int, int]] = []
    places: dict[str, list[int]] = {}
    for j, word in enumerate(b.words):
        for form in {word.lemma, word.raw}:
            places.setdefault(form, []).append(j)
    left: list[int] = []
    for i in free_a:
        word = a.words[i]
        found = [j for form in (word.lemma, word.raw) for j in places.get(form, ()) if j in free_b]
        if found:
            j = min(found, key=lambda j: (b.words[j].role != word.role, abs(j - i)))
            pairs.append((i, j))
            free_b.discard(j)
        else:
            left.append(i)
    exact = len(pairs)
    rest_a: list[int] = []
    for i in left:
        word = a.words[i]
        found = [j for j in sorted(free_b) if _stands_for(word, b.words[j], lexicon)]
        if found:
            pairs.append((i, found[0]))
            free_b.discard(found[0])
        else:
            rest_a.append(i)
    return Alignment(tuple(sorted(pairs)), exact, tuple(rest_a), tuple(sorted(free_b)))


def _stands_for(one: Word, other: Word, lexicon: Lexicon) -> bool:
    related = lexicon.related(one.lemma, other.lemma) or lexicon.related(one.raw, other.raw)
    return related and not lexicon.opposed(one.lemma, other.lemma)


def _differences(a: Reading, b: Reading, alignment: Alignment, lexicon: Lexicon) -> Iterator[str]:
    """Everything that keeps two readings apart, cheapest rule first."""
    yield from _values(a, b)
    if a.negations != b.negations:
        yield "one is negated, the other is not, or not as often"
    if clash := _clash(a, b):
        yield clash
    if min(a.known, b.known) < LEAST_KNOWN or max(len(a.words), len(b.words)) > MAX_WORDS:
        yield "not judged: not English, or too long"
    if not (alignment.pairs or a.literals or a.numbers or b.literals or b.numbers):
        yield "no content word in common"
    yield from _opposites(a, b, lexicon)
    yield from _standing_alone(a, b)
    yield from _people_and_time(a, b)
    yield from _supposed(a, b)
    yield from _scope(a, b, alignment)
    yield from _direction(a, b, alignment)
    yield from _replaced(a, b, alignment)


def _values(a: Reading, b: Reading) -> Iterator[str]:
    one = (1.0, "")
    numbers_a = [number for number in a.numbers if number != one]
    numbers_b = [number for number in b.numbers if number != one]
    if not _same_numbers(numbers_a, numbers_b):
        yield f"numbers differ: {_shown(a.numbers)} / {_shown(b.numbers)}"
    elif a.order != b.order and sorted(a.order) == sorted(b.order):
        yield f"in another order: {', '.join(a.order)} / {', '.join(b.order)}"
    lemmas_a, lemmas_b = ({word.lemma for word in one.words} for one in (a, b))
    for value, thing in a.counted:
        for other, else_ in b.counted:
            if value == other and thing != else_ and thing in lemmas_b and else_ in lemmas_a:
                yield f"{value:g} of '{thing}' in one, of '{else_}' in the other"
    if a.bounds != b.bounds:
        yield f"limits differ: {', '.join(a.bounds) or 'none'} / {', '.join(b.bounds) or 'none'}"
    if a.literals != b.literals:
        odd = sorted(a.literals ^ b.literals)
        if any(literal not in a.text or literal not in b.text for literal in odd):
            yield f"named literally in one only: {odd[0]}"
    for name in sorted(a.names ^ b.names):
        reading = b if name in a.names else a
        if name not in reading.forms:
            yield f"a name in one only: {name}"


def _same_numbers(a: list[tuple[float, str]], b: list[tuple[float, str]]) -> bool:
    """Equal as multisets; "5th" is 5."""
    plain = [sorted((value, "" if unit == "th" else unit) for value, unit in one) for one in (a, b)]
    return plain[0] == plain[1]


def _clash(a: Reading, b: Reading) -> str:
    for asks, other in ((a.asks, b.asks), (b.asks, a.asks)):
        if not other and (special := asks & _SPECIAL):
            return f"one asks for {min(special)}, the other asks nothing"
    if a.asks and b.asks and a.asks.isdisjoint(b.asks):
        for x in sorted(a.asks):
            for y in sorted(b.asks):
                if frozenset((x, y)) in CLASHES:
                    return f"one asks for {x}, the other for {y}"
    return ""


def _opposites(a: Reading, b: Reading, lexicon: Lexicon) -> Iterator[str]:
    only_a = {word.removesuffix("#2") for word in a.forms - b.forms}
    only_b = {word.removesuffix("#2") for word in b.forms - a.forms}
    words_b = [word for word in only_b if word in OPPOSITES or word not in FUNCTION]
    for word in only_a:
        if word in FUNCTION and word not in OPPOSITES:
            continue
        for other in words_b:
            if lexicon.opposed(word, other):
                yield f"opposites: {word} / {other}"


def _standing_alone(a: Reading, b: Reading) -> Iterator[str]:
    for word in sorted((a.forms ^ b.forms) & ALONE):
        yield f"in one only: {word}"


def _people_and_time(a: Reading, b: Reading) -> Iterator[str]:
    for x, y in ((a, b), (b, a)):
        if x.forms & _OTHERS and not y.forms & _OTHERS and y.forms & _FIRST - x.forms:
            yield "about different people"
        if "my" in x.forms - y.forms and "your" in y.forms - x.forms:
            yield "'my' in one, 'your' in the other"
        if x.addressed and not y.addressed and "i" in y.forms and "i" not in x.forms:
            yield "the asker does it in one, and has it done to them in the other"
        if x.forms & _FUTURE and not y.forms & _FUTURE and y.forms & _PAST and not x.forms & _PAST:
            yield "one is about the future, the other about the past"


def _supposed(a: Reading, b: Reading) -> Iterator[str]:
    """ "Can I", "must I" and "should I" are three questions; "how can I" and "how do I" are one."""
    if "procedure" in a.asks | b.asks:
        return
    kinds = {a.modality, b.modality}
    plain = not {"yesno", "can"} & (a.asks | b.asks)
    if len(kinds) == 2 and not ("" in kinds and (plain or "must" not in kinds)):
        yield f"one asks what {a.modality or 'is'}, the other what {b.modality or 'is'}"
    if a.tense and b.tense and a.tense != b.tense:
        yield f"one is about the {a.tense}, the other about the {b.tense}"
    for x, y in ((a.forms, b.forms), (b.forms, a.forms)):
        if "or" in x - y and "and" in y - x:
            yield "'or' in one, 'and' in the other"


def _scope(a: Reading, b: Reading, alignment: Alignment) -> Iterator[str]:
    """The same number of negations, of different words."""
    if a.floating or b.floating or not a.negations:
        return
    for i, j in alignment.pairs:
        if a.words[i].negated != b.words[j].negated and (
            _negates_shared(a, {x for x, _ in alignment.pairs})
            and _negates_shared(b, {y for _, y in alignment.pairs})
        ):
            yield f"a different word is negated: {a.words[i].raw}"


def _negates_shared(reading: Reading, shared: set[int]) -> bool:
    return any(word.negated and place in shared for place, word in enumerate(reading.words))


def _direction(a: Reading, b: Reading, alignment: Alignment) -> Iterator[str]:
    """Words shared by both that changed their end of a relation, or their places."""
    for i, j in alignment.pairs:
        x, y = a.words[i], b.words[j]
        opposed = (x.role in DIRECTIONS and y.role in DIRECTIONS) or "by" in (x.role, y.role)
        # The same prepositions in both, but at other words: "a into b", "b into a".
        moved = (
            bool({x.role, y.role} & DIRECTIONS)
            and bool(a.relations)
            and (a.relations == b.relations)
        )
        if x.role != y.role and (opposed or moved):
            yield f"'{x.raw}' is '{x.role or 'no'}' in one, '{y.role or 'no'}' in the other"
    yield from _owner(a, b, alignment.pairs)
    yield from _owner(b, a, tuple((j, i) for i, j in alignment.pairs))
    more_a, more_b = Counter(a.relations), Counter(b.relations)
    for x_word in more_a - more_b:
        for y_word in more_b - more_a:
            if frozenset((x_word, y_word)) in _ENDS:
                yield f"one has '{x_word}' where the other has '{y_word}'"
    complete = not alignment.rest_a and not alignment.rest_b
    if complete and a.relations.count("from") != b.relations.count("from"):
        yield "the same words, one with 'from'"
    if all(m > j for (_, j), (_, m) in pairwise(alignment.pairs)):
        return
    symmetric = any(
        a.words[i].lemma in SYMMETRIC and b.words[j].lemma in SYMMETRIC for i, j in alignment.pairs
    )
    for (i, j), (k, m) in combinations(alignment.pairs, 2):
        if m > j or symmetric:
            continue
        first_a, second_a, first_b, second_b = a.words[i], a.words[k], b.words[j], b.words[m]
        settled = _settled(first_a, first_b, second_a, second_b) or _settled(
            second_a, second_b, first_a, first_b
        )
        directed = {first_a.role, second_a.role, first_b.role, second_b.role} & DIRECTIONS
        beside = _qualified(a.words, i, k) and _qualified(b.words, j, m)
        fine = beside or _compound(a, b, (i, k), (j, m))
        if not settled and (directed or not fine):
            yield f"'{first_a.raw}' and '{second_a.raw}' changed places"


def _owner(a: Reading, b: Reading, pairs: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """ "The pool in the gym" and "the pool has a gym": what is in what."""
    if not {"have", "has", "had"} & (b.forms - a.forms):
        return
    for i, j in pairs:
        if (i - 1, j - 1) in pairs and a.words[i].role in _INSIDE and not b.words[j].role:
            yield f"'{a.words[i].raw}' has something in one, is had in the other"


def _qualified(words: tuple[Word, ...], one: int, other: int) -> bool:
    """A noun with its adjective beside it: "lost card", "my card is lost"."""
    return abs(one - other) == 1 and words[one].qualifies != words[other].qualifies


def _compound(a: Reading, b: Reading, places_a: tuple[int, int], places_b: tuple[int, int]) -> bool:
    """Whether one says "the X of Y" (or with, at, for, in) and the other "Y's X" or "the Y X"."""
    (i, k), (j, m) = places_a, places_b
    if a.dangling or b.dangling:
        return False
    if any(
        a.words[x].acts and a.words[x].raw != b.words[y].raw
        for x, y in zip(places_a, places_b, strict=True)
    ):
        return False
    return _of_and_beside(a.words, (i, k), b.words, (m, j)) or _of_and_beside(
        b.words, (m, j), a.words, (i, k)
    )


def _of_and_beside(
    one: tuple[Word, ...],
    apart: tuple[int, int],
    other: tuple[Word, ...],
    beside: tuple[int, int],
) -> bool:
    """`one` has its two words with such a preposition between, `other` has its two side by side."""
    head, tail = one[apart[0]], one[apart[1]]
    first, second = other[beside[0]], other[beside[1]]
    return (
        tail.role in _BELONGS
        and head.role != tail.role
        and apart[1] - apart[0] == 1
        and beside[1] - beside[0] <= 2
        and first.role == second.role
    )


def _settled(in_a: Word, in_b: Word, other_a: Word, other_b: Word) -> bool:
    """Whether a preposition of its own holds the first word wherever it stands."""
    return (
        bool(in_a.role)
        and in_a.role == in_b.role
        and in_a.role
        not in (
            other_a.role,
            other_b.role,
        )
    )


_INSIDE = frozenset({"in", "of", "at", "on"})
_BELONGS = frozenset({"of", "with", "at", "for", "in", "on"})
_ENDS = tuple(
    frozenset(pair.split("/"))
    for pair in ["from/to", "before/after", "above/below", "over/under", "behind/before"]
)


def _replaced(a: Reading, b: Reading, alignment: Alignment) -> Iterator[str]:
    """A word that stands where another stood, between the same neighbours."""
    partner = dict(alignment.pairs)
    for i in alignment.rest_a:
        before, after = partner.get(i - 1, -1 if i == 0 else None), None
        k = i + 1
        while k < len(a.words) and k in alignment.rest_a:
            k += 1
        after = len(b.words) if k == len(a.words) else partner.get(k)
        if before is None and after is None:
            continue
        gap = [
            j
            for j in alignment.rest_b
            if (before is None or j > before) and (after is None or j < after)
        ]
        if before is not None and after is not None and gap and after - before - 1 == len(gap):
            yield f"'{a.words[i].raw}' stands where the other has '{b.words[gap[0]].raw}'"


def _shown(numbers: tuple[tuple[float, str], ...]) -> str:
    return ", ".join(f"{value:g} {unit}".strip() for value, unit in numbers) or "none"

"""Signs that a text tries to take over the model's instructions or to lift its limits.

    PromptInjection(0.7).look(["Ignore all previous instructions and ..."])
    signs("1gn0re a11 prev1ous instruct10ns").score       # 0.85 and the names of the rules

Rules with weights on a normalized text, also on what base64, hexadecimal, leetspeak and look-alike
letters hide, and a classifier for similar wordings (`injection_wording.py`). This finds known ways
of saying it, cheaply; a new way may pass. It is a reason to look closer (the default act is
`review`), not a wall: what must not happen is kept by permissions.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from factory.gateway.guard.findings import Span
from factory.gateway.guard.injection_rules import rules
from factory.gateway.guard.injection_wording import wording
from factory.gateway.guard.patterns import Together

_RULES = tuple(rules())
_TOGETHER: list[Together] = []
"""The automaton of all rules, built when the first filter is."""

_HIDDEN_WEIGHT = 0.8
_SPLIT_WEIGHT = 0.4
_DISGUISE_BONUS = 0.1
_LEAST_WORDING = 0.4
"""Below it, that a text is worded like an attack says nothing."""
_MOST_WORDING = 0.9
_MENTION = 0.6
"""What a quoted sign is worth in a text that talks about such attacks."""

# Zero-width and other default-ignorable characters, and variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U000e0100-\U000e01ef]+"
)
_SPLIT_WORD = re.compile("[A-Za-z][\u00ad\u200b-\u200d\u2060\ufeff]+[A-Za-z]")
_FLAG = re.compile("\U0001f3f4[\U000e0061-\U000e007a]{2,6}\U000e007f")
_TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s,:]?){16,}")
_MAX_PAYLOADS = 20
_MAX_PAYLOAD_CHARACTERS = 20_000
_LEET = str.maketrans("013457@$!|8", "oieastasilb")
_LEET_SIGN = re.compile(r"[a-z][013457@$!|8]|[013457@$!|8][a-z]")
# Cyrillic, Greek and other letters that look like Latin ones (after Unicode's TR39).
_LOOK_ALIKES = str.maketrans(
    "авеԁһіјӏокԛгѕтисмнрхуѵԝзѡαβεηικνορτυχωγϲϳɑɡıʟոսօհցԍʀɴᴏᴄᴇᴀᴛɪꜱᴜᴘᴅᴍ",
    "abedhijlokqrstucmhpxyvwswabenikvoptuxwycjagilnuohggrnoceatisupdm",
)
_QUOTED = re.compile(
    r"\"[^\"\n]{1,400}\"|“[^”\n]{1,400}”|«[^»\n]{1,400}»|„[^“”\n]{1,400}[“”]"
    r"|`[^`\n]{1,400}`|(?<!\w)'[^'\n]{4,400}'(?!\w)"
)
_ABOUT = re.compile(
    r"\b(?:prompt injections?|injections?|jailbreak(?:s|ing)?|attack(?:s|ers?)?|phishing|examples?"
    r"|explain|paper|article|blog|detect(?:s|ion|or)?|classif\w+|moderation|security|owasp|mean"
    r"|means|phrases?|strings?|docs|documentation|templates?|tokens?|translate|spam|error|test)\b"
)


class Signs(NamedTuple):
    """What speaks for an attack."""

    score: float
    """0 to 1: one minus the product of what each sign leaves open, or what its wording says."""
    names: tuple[str, ...]
    """The signs, strongest first."""


class PromptInjection:
    """Finds texts whose signs reach a threshold; the span is the whole text."""

    labels = frozenset({"PROMPT_INJECTION"})
    repeats = False

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        _automaton()

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """One span for each suspicious text; its note names the signs."""
        found: list[tuple[int, Span]] = []
        for index, text in enumerate(texts):
            score, names = signs(text)
            if names and score >= self._threshold:
                note = f"{score:.2f}, {', '.join(names)}"
                found.append((index, Span("PROMPT_INJECTION", 0, len(text), score, note)))
        return found


def signs(text: str) -> Signs:
    """Score a text. Linear in its length."""
    plain, hidden = _normalized(text)
    seen = weights = _matching(plain)
    if weights and _ABOUT.search(plain) is not None:
        weights = _unquoted(plain, weights)
    weights |= hidden
    for disguise, uncovered in _uncovered(text, plain):
        for name, weight in _matching(uncovered).items():
            if weight > seen.get(name, 0.0):
                weights.pop(name, None)
                weights[f"{name} in {disguise}"] = min(1.0, weight + _DISGUISE_BONUS)
    open_ = 1.0
    for weight in weights.values():
        open_ *= 1 - weight
    # The model sees what the rules see, so what both say does not count twice.
    alike = min(wording(plain_words(text)), _MOST_WORDING)
    if alike >= _LEAST_WORDING:
        weights["WORDING"] = alike
        open_ = min(open_, 1 - alike)
    names = sorted(weights, key=lambda name: -weights[name])
    return Signs(round(1 - open_, 4), tuple(names))


def plain_words(text: str) -> str:
    """A text as its wording is judged: lower case, and unquoted where it is about attacks."""
    plain, _ = _normalized(text)
    return _QUOTED.sub(" ", plain) if _ABOUT.search(plain) is not None else plain


def _automaton() -> Together:
    if not _TOGETHER:
        _TOGETHER.append(Together([rule.pattern for rule in _RULES]))
    return _TOGETHER[0]


def _matching(plain: str) -> dict[str, float]:
    """The weight of each sign in a normalized text: that of its strongest rule."""
    weights: dict[str, float] = {}
    for number in _automaton().matching(plain):
        name, _, weight = _RULES[number]
        weights[name] = max(weight, weights.get(name, 0.0))
    return weights


def _unquoted(plain: str, weights: dict[str, float]) -> dict[str, float]:
    """Less for signs that appear only in quotes of a text about attacks or formats."""
    said = _matching(_QUOTED.sub(" ", plain))
    return {
        name: said.get(name, 0.0)
        if said.get(name, 0.0) == weight
        else max(said.get(name, 0.0), weight * _MENTION)
        for name, weight in weights.items()
    }


def _normalized(text: str) -> tuple[str, dict[str, float]]:
    """Lower case, compatible forms, nothing invisible; and what was hidden."""
    if text.isascii():
        return text.lower(), {}
    hidden: dict[str, float] = {}
    text = _FLAG.sub("", text)
    if _TAGS.search(text) is not None:
        hidden["INVISIBLE_TEXT"] = _HIDDEN_WEIGHT
        text = _TAGS.sub(lambda run: "".join(chr(ord(one) - 0xE0000) for one in run[0]), text)
    if len(_SPLIT_WORD.findall(text)) >= 3:
        hidden["SPLIT_WORDS"] = _SPLIT_WEIGHT
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).lower()
    return text.replace("\u2019", "'"), hidden


def _uncovered(text: str, plain: str) -> Iterator[tuple[str, str]]:
    """Readings of a text that a model would see through, each with the name of the disguise."""
    if not plain.isascii():
        bare = unicodedata.normalize("NFKD", plain.translate(_LOOK_ALIKES))
        bare = "".join(one for one in bare if not unicodedata.combining(one))
        if bare != plain:
            yield "look-alike letters", bare
    if _LEET_SIGN.search(plain) is not None:
        yield "leetspeak", plain.translate(_LEET)
    for payload in _payloads(text):
        yield "an encoded payload", _normalized(payload)[0]


def _payloads(text: str) -> Iterator[str]:
    """Base64 and hexadecimal that decode to text."""
    decoded = 0
    for match in _BASE64.finditer(text):
        chunk = match.group()[:_MAX_PAYLOAD_CHARACTERS].rstrip("=")
        chunk = chunk[: len(chunk) - (len(chunk) % 4 == 1)]
        try:
            raw = base64.b64decode(chunk + "=" * (-len(chunk) % 4), altchars=b"-_")
        except (binascii.Error, ValueError):
            continue
        if (payload := _readable(raw)) is not None:
            yield payload
            decoded += 1
        if decoded >= _MAX_PAYLOADS:
            return
    for match in _HEX.finditer(text):
        digits = re.sub(r"0x|\\x|[^0-9a-fA-F]", "", match.group()[:_MAX_PAYLOAD_CHARACTERS])
        payload = _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))
        if payload is not None:
            yield payload
            decoded += 1
        if decoded >= _MAX_PAYLOADS:
            return


def _readable(raw: bytes) -> str | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    printable = sum(one.isprintable() or one.isspace() for one in text)
    return text if text and " " in text and printable >= 0.95 * len(text) else None

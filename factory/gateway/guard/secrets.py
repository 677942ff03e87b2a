"""Secrets: tokens by the formats their issuers publish, and values that are called a password.

    Secrets().look(["export GITHUB_TOKEN=ghp_..."])       # one GITHUB_TOKEN

Own patterns in one RE2 automaton, because the library for this, detect-secrets 1.5.0, was made
for repositories: 25 ms for a text of 2 kB, no release since May 2024, and its entropy rules
report hashes and UUIDs. Entropy alone is therefore never a reason here: without a known format
or a telling name before it, a random string is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from factory.gateway.guard.findings import Span
from factory.gateway.guard.patterns import Match, Patterns

_NAMED = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|kennwort|passwort|contraseña|mot de passe|senha|secret"
    r"|api[_ -]?key|access[_ -]?key|account[_ -]?key|private[_ -]?key|encryption[_ -]?key"
    r"|client[_ -]?secret|(?:access|auth|refresh|bearer|session|api|bot|id)?[_ -]?token"
    r"|credentials?)"
)
_FORMATS = {
    "PRIVATE_KEY": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "JWT": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "FACTORY_KEY": r"\bsk-factory-[A-Za-z0-9_-]{16,}",
    "ANTHROPIC_KEY": r"\bsk-ant-[A-Za-z0-9_-]{20,}",
    "OPENAI_KEY": r"\bsk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}|\bsk-[A-Za-z0-9]{32,}\b",
    "LLM_PROVIDER_KEY": r"\bsk-[a-z0-9]{2,10}-[A-Za-z0-9_-]{24,}|\bgsk_[A-Za-z0-9]{40,}"
    r"|\bxai-[A-Za-z0-9]{60,}|\bpplx-[A-Za-z0-9]{40,}|\br8_[A-Za-z0-9]{37}\b",
    "AWS_ACCESS_KEY": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "GITHUB_TOKEN": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{22,}",
    "GITLAB_TOKEN": r"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[A-Za-z0-9_.-]{20,}",
    "SLACK_TOKEN": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{10,}"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}",
    "GOOGLE_KEY": r"\bAIza[A-Za-z0-9_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{28}|\bya29\.[A-Za-z0-9_-]{20,}",
    "HUGGINGFACE_TOKEN": r"\bhf_[A-Za-z0-9]{34,}\b",
    "STRIPE_KEY": r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9+/]{32,}",
    "TWILIO_KEY": r"\bSK[0-9a-f]{32}\b",
    "SENDGRID_KEY": r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
    "PACKAGE_TOKEN": r"\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[A-Za-z0-9_-]{50,}",
    "BOT_TOKEN": r"\b\d{8,10}:AA[A-Za-z0-9_-]{33}"
    r"|\b[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}",
    "CLOUD_TOKEN": r"\bdo[opr]_v1_[0-9a-f]{64}\b|\bdapi[0-9a-f]{32}\b|\bhvs\.[A-Za-z0-9_-]{24,}"
    r"|\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b|\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b",
    "URL_PASSWORD": r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@'\"<>]{0,64}:"
    r"(?P<value>[^\s/@'\"]{3,128})@[A-Za-z0-9\[]",
    "BEARER_TOKEN": r"(?i:\bbearer\s+)(?P<value>[A-Za-z0-9._~+/-]{20,}=*)",
    "PASSWORD": r"(?i:" + _NAMED + r")['\"`]{0,2}\s{0,4}(?::=|=>|=|:|\bis:?\s)\s{0,4}"
    r"(?P<value>\"[^\"\n]{4,256}\"|'[^'\n]{4,256}'|`[^`\n]{4,256}`|[^\s\"'`,;&]{4,256})",
}
_NOT_SECRET = frozenset(
    {"none", "null", "true", "false", "undefined", "optional", "required", "string", "str"}
    | {"bytes", "int", "text", "password", "passwd", "passphrase", "pass", "pwd", "secret"}
    | {"token", "changeme", "change_me", "example", "placeholder", "redacted", "hidden"}
    | {"masked", "value", "user", "username"}
)
_EXPRESSION = re.compile(r"[(\[{$%<]|^[*x.•_-]+$|^\.{3}|://", re.IGNORECASE)
_BODY = re.compile(r"(?:\s|\\[nr]|[A-Za-z0-9+/=]{16,})*")
_FOOTER = re.compile(r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_PEM_CHARACTERS = 16_000


class Secrets:
    """Finds secrets; the name before a password stays, its value is the span."""

    labels = frozenset(_FORMATS)
    repeats = True

    def __init__(self) -> None:
        self._patterns = Patterns(_FORMATS)

    def look(self, texts: Sequence[str]) -> list[tuple[int, Span]]:
        """Spans of secrets, from left to right in each text."""
        return [(index, span) for index, text in enumerate(texts) for span in self._spans(text)]

    def _spans(self, text: str) -> Iterator[Span]:
        for match in self._patterns.spans(text):
            span = _checked(text, match)
            if span is not None:
                yield span


def _checked(text: str, match: Match) -> Span | None:
    label, start, end = match
    if label == "PRIVATE_KEY":
        return Span(label, start, _end_of_key(text, end), 1.0)
    value = text[start:end]
    if label == "PASSWORD":
        quoted = value[0] in "\"'`"
        if quoted:
            start, end, value = start + 1, end - 1, value[1:-1]
        else:
            value = value.rstrip(".)]}>*")
            end = start + len(value)
        if len(value) < 4 or not _like_a_password(value, quoted):
            return None
        return Span(label, start, end, 0.8)
    if label == "URL_PASSWORD":
        known = value.casefold() in _NOT_SECRET or _EXPRESSION.search(value) is not None
        return None if known else Span(label, start, end, 0.9)
    if label in ("BEARER_TOKEN", "LLM_PROVIDER_KEY", "OPENAI_KEY") and not _mixed(value):
        return None
    return Span(label, start, end, 1.0)


def _like_a_password(value: str, quoted: bool) -> bool:
    """Whether a value after `password=` is one, not code that computes it or a type."""
    if value.casefold() in _NOT_SECRET or _EXPRESSION.search(value) is not None:
        return False
    if quoted:
        return " " not in value.strip() or any(map(str.isdigit, value))
    return any(map(str.isdigit, value)) or any(one in "!@#^&*+?~|" for one in value)


def _mixed(value: str) -> bool:
    """Digits among letters: words joined by hyphens are no token."""
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def _end_of_key(text: str, start: int) -> int:
    """Where a PEM key ends; without its last line, where its base64 ends."""
    footer = _FOOTER.search(text, start, start + _PEM_CHARACTERS)
    if footer is not None:
        return footer.end()
    body = _BODY.match(text, start)
    return start + len(text[start : body.end()].rstrip()) if body is not None else start

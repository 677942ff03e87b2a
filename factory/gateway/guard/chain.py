"""Filters in a row, and the one decision they come to.

    chain = Chain.of(settings.guard)                 # once for each endpoint
    decision = chain.look_at_input(["my password: hunter2!"])
    decision.act, decision.texts                     # "allow", ("my password: <PASSWORD>",)

Pure: the same texts give the same decision. Later filters see what earlier ones redacted. Of
several acts, reject goes before review before onprem and redact (both of which are done) before
allow; the first rejection ends the work.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from factory.config import (
    BannedFilter,
    Filter,
    Guard,
    JsonSchemaFilter,
    PersonalDataFilter,
    PromptInjectionFilter,
    SecretsFilter,
    ShapeFilter,
)
from factory.gateway.guard.banned import Banned
from factory.gateway.guard.findings import (
    Decision,
    Finding,
    Looking,
    Span,
    decide,
    redacted,
    repeated,
)
from factory.gateway.guard.json_schema import JsonSchema
from factory.gateway.guard.personal_data import PersonalData
from factory.gateway.guard.prompt_injection import PromptInjection
from factory.gateway.guard.secrets import Secrets
from factory.gateway.guard.shape import Shape

_SURROGATES = re.compile("[\ud800-\udfff]")
TOGETHER = 50
"""Texts that make no conversation are looked at so many at a time."""

_PASSES = 4
"""A redaction can lay bare what it stood next to, so redacting filters look again."""


class Chain:
    """The filters of one endpoint."""

    def __init__(
        self,
        inputs: Sequence[tuple[Filter, Looking | JsonSchema]],
        outputs: Sequence[tuple[Filter, Looking | JsonSchema]],
    ) -> None:
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        labels = {label for _, look in (*inputs, *outputs) for label in look.labels}
        self._placeholder = re.compile(
            "<(?:" + "|".join(sorted(map(re.escape, labels))) + ")>" if labels else r"(?!)"
        )

    @classmethod
    def of(cls, guard: Guard) -> Chain:
        """The chain of a configuration; equal filters share their recognizers.

        Raises `ValueError` for an unknown entity, naming the known ones. A `personal_data` filter
        imports Presidio, which takes seconds when PyTorch is not yet imported.
        """
        made: dict[str, Looking | JsonSchema] = {}

        def of(config: Filter) -> Looking | JsonSchema:
            key = config.model_dump_json()
            if key not in made:
                made[key] = _made(config)
            return made[key]

        inputs = [(config, of(config)) for config in guard.input]
        return cls(inputs, [(config, of(config)) for config in guard.output])

    def look_at_input(self, texts: Sequence[str]) -> Decision:
        """Decide about a request. `texts` are those of all messages, whatever their roles."""
        return self._run(self._inputs, texts, None)

    def look_at_each(self, texts: Sequence[str]) -> Decision:
        """Decide about texts that make no conversation, such as those to be embedded.

        They are looked at `TOGETHER` at a time: bounds on messages and length are those of prompts.
        """
        findings: list[Finding] = []
        passed: list[str] = []
        for start in range(0, len(texts), TOGETHER):
            found = self.look_at_input(texts[start : start + TOGETHER])
            findings += (
                one if one.text < 0 else replace(one, text=one.text + start)
                for one in found.findings
            )
            passed += found.texts
            if found.act == "reject":
                break
        return decide(findings, passed)

    def look_at_output(self, text: str, schema: Mapping[str, Any] | None = None) -> Decision:
        """Decide about an answer. `schema` is the JSON schema that its request asked for."""
        return self._run(self._outputs, (text,), schema)

    def _run(
        self,
        filters: Sequence[tuple[Filter, Looking | JsonSchema]],
        texts: Sequence[str],
        schema: Mapping[str, Any] | None,
    ) -> Decision:
        current = [_encodable(text) for text in texts]
        everywhere = range(len(current))
        findings: list[Finding] = []
        redactors: list[tuple[Filter, Looking]] = []
        touched: set[int] = set()
        for config, look in filters:
            if isinstance(look, JsonSchema):
                findings += _findings(config, look.check(current[0], schema))
            elif config.act == "redact":
                found = list(self._redact(config, look, current, everywhere))
                findings += found
                touched |= {one.text for one in found if redactors}
                redactors.append((config, look))
            else:
                findings += _findings(config, look.look(current))
            if findings and findings[-1].act == "reject":
                return decide(findings, current)
        for _ in range(_PASSES):
            if not touched:
                break
            found = [
                one
                for config, look in redactors
                for one in self._redact(config, look, current, sorted(touched))
            ]
            findings += found
            touched = {one.text for one in found}
        return decide(findings, current)

    def _redact(
        self, config: Filter, look: Looking, texts: list[str], pending: Sequence[int]
    ) -> Iterator[Finding]:
        """Redact the `pending` of `texts` in place until nothing more is found."""
        for _ in range(_PASSES):
            looked = look.look([texts[index] for index in pending])
            found = [(pending[index], span) for index, span in looked]
            if found and look.repeats:
                found += repeated(texts, found)
            found = self._outside_placeholders(texts, found)
            if not found:
                return
            yield from _findings(config, found)
            pending = sorted({index for index, _ in found})
            for index in pending:
                texts[index] = redacted(texts[index], [span for at, span in found if at == index])

    def _outside_placeholders(
        self, texts: Sequence[str], found: list[tuple[int, Span]]
    ) -> list[tuple[int, Span]]:
        """Without the spans that lie inside what an earlier redaction left."""
        taken = {
            index: [match.span() for match in self._placeholder.finditer(texts[index])]
            for index in {index for index, _ in found}
            if "<" in texts[index]
        }
        return [(index, span) for index, span in found if not _inside(span, taken.get(index, []))]


def _inside(span: Span, stretches: Sequence[tuple[int, int]]) -> bool:
    """Whether one of the sorted, disjoint `stretches` holds all of `span`."""
    at = bisect_right(stretches, (span.start, sys.maxsize)) - 1
    return at >= 0 and stretches[at][0] <= span.start and span.end <= stretches[at][1]


def _made(config: Filter) -> Looking | JsonSchema:
    match config:
        case ShapeFilter():
            return Shape(config)
        case SecretsFilter():
            return Secrets()
        case PersonalDataFilter():
            return PersonalData(config)
        case PromptInjectionFilter():
            return PromptInjection(config.threshold)
        case BannedFilter():
            return Banned(config.patterns)
        case JsonSchemaFilter():
            return JsonSchema()


def _findings(config: Filter, found: Sequence[tuple[int, Span]]) -> list[Finding]:
    return [
        Finding(
            filter=config.filter,
            act=config.act,
            label=span.label,
            text=index,
            start=span.start,
            end=span.end,
            score=span.score,
            note=span.note,
        )
        for index, span in found
    ]


def _encodable(text: str) -> str:
    """`text` without lone surrogates, which JSON can smuggle in and UTF-8 cannot hold."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)

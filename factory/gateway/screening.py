"""The guard's look at one answer: whole, or as it streams.

    screening.unfit(answer)            # why a higher tier should be asked; "" when nothing speaks
    answer = await screening.whole(answer)          # ApiError: rejected, or held for a person
    for safe in screening.feed(chunk): send(safe)   # redacted, a few words behind the model

A live stream is passed on up to the last word that cannot become part of something to redact.
What was sent already is seen again with what follows, so a finding may not hide in the cut.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from factory.config import Guard
from factory.gateway.answers import Answer
from factory.gateway.engine import Chunk
from factory.gateway.errors import ApiError
from factory.gateway.guard.chain import Chain

Hold = Callable[[Answer, tuple[str, ...]], Awaitable[ApiError]]
"""Puts an answer before a person; the error says where to ask for the verdict."""

_CONTEXT = 240
"""Characters already sent that are looked at again together with what follows."""

_LONGEST_WAIT = 4_000
"""Characters that are held back at most, however risky they look."""

_RISKY_END = re.compile(r"(?:(?:\S*\d\S*\d\S*|\S*[@=]\S*|\S*:)\s+){0,12}\S*$")
"""The last word, and the words before it that look like parts of numbers, addresses or keys."""


class Screening:
    """One answer in front of the output filters of its endpoint."""

    def __init__(
        self,
        chain: Chain,
        guard: Guard,
        *,
        schema: dict[str, Any] | None,
        choices: int,
        logprobs: bool,
        approved: bool,
        note: Callable[[tuple[str, ...]], None],
        hold: Hold,
    ) -> None:
        """`note` takes reasons for the request's record; an `approved` answer is not held again."""
        acts = {one.act for one in guard.output if one.filter != "json_schema"}
        self._chain = chain
        self._schema = schema
        self._approved = approved
        self._note = note
        self._hold = hold
        self._looks = bool(acts)
        self._sent = ""
        self._shown = ""
        self._pending = ""
        self.may_stream = (
            schema is None
            and choices == 1
            and "review" not in acts
            and not (logprobs and "redact" in acts)
        )

    def unfit(self, answer: Answer) -> str:
        """Why the answer misses the form that was asked for; empty when it fits."""
        if self._schema is None:
            return ""
        wrong = [
            finding.label
            for text, schema in self._texts(answer)
            if schema is not None
            for finding in self._chain.look_at_output(text, schema).findings
            if finding.filter == "json_schema"
        ]
        return f"the answer misses its JSON schema: {wrong[0]}" if wrong else ""

    async def whole(self, answer: Answer) -> Answer:
        """The answer as it may be sent.

        Raises `ApiError`: 502 when a filter rejects it, 202 when a person must look at it first.
        """
        decisions = [
            self._chain.look_at_output(text, schema) for text, schema in self._texts(answer)
        ]
        reasons = tuple(reason for one in decisions for reason in one.reasons)
        self._note(reasons)
        acts = {one.act for one in decisions}
        if "reject" in acts:
            raise _rejected(reasons)
        answer = answer.with_texts([one.texts[0] for one in decisions])
        if "review" in acts and not self._approved:
            raise await self._hold(answer, reasons)
        return answer

    def _texts(self, answer: Answer) -> list[tuple[str, dict[str, Any] | None]]:
        """Every text of the answer, with the schema that it must satisfy, if any."""
        spoken = {id(choice.text) for choice in answer.choices if not choice.tool_calls}
        return [(text, self._schema if id(text) in spoken else None) for text in answer.texts]

    def feed(self, chunk: Chunk) -> Iterator[Chunk]:
        """What may be sent now that `chunk` has come. Raises `ApiError` 502 on a rejection."""
        choices = chunk.get("choices") or []
        if not self._looks or not choices:
            yield chunk
            return
        said, name = _said(choices[0])
        self._pending += said.get(name) or ""
        ended = choices[0].get("finish_reason") is not None
        cut = len(self._pending) if ended else self._safe()
        text = self._release(cut) if cut else ""
        # What carries no text, such as the role or a tool call, is never held back.
        if text or ended or name not in said or len(said) > 1:
            yield _with_text(chunk, text)

    def told(self, answer: Answer) -> Answer:
        """The streamed answer as it was sent."""
        if not self._looks or self._shown == answer.text:
            return answer
        return answer.with_texts((self._shown, *answer.texts[1:]))

    def _safe(self) -> int:
        if "-----BEGIN" in self._pending and len(self._pending) < _LONGEST_WAIT:
            return self._pending.index("-----BEGIN")
        match = _RISKY_END.search(self._pending)
        safe = self._pending[: match.start()] if match else self._pending
        return len(safe.rstrip())

    def _release(self, cut: int) -> str:
        before = self._sent[-_CONTEXT:]
        fresh, self._pending = self._pending[:cut], self._pending[cut:]
        decision = self._chain.look_at_output(before + fresh, None)
        if decision.act == "reject":
            raise _rejected(decision.reasons)
        self._sent += fresh
        if decision.texts[0] == before + fresh:
            text = fresh
        else:
            self._note(decision.reasons)
            seen = self._chain.look_at_output(before, None).texts[0]
            text = decision.texts[0][_common(seen, decision.texts[0]) :]
        self._shown += text
        return text


def _said(choice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Where a chunk's text stands: in its delta, or on the older route in the choice itself."""
    return (choice, "text") if "text" in choice else (choice["delta"], "content")


def _with_text(chunk: Chunk, text: str) -> Chunk:
    choice = chunk["choices"][0]
    said, name = _said(choice)
    changed = {**said, name: text} if name in said or text else said
    if name == "content":
        changed = {**choice, "delta": changed}
    return {**chunk, "choices": [changed]}


def _common(one: str, other: str) -> int:
    """Length of the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _rejected(reasons: tuple[str, ...]) -> ApiError:
    why = "; ".join(reasons) or "it was rejected"
    return ApiError(502, "answer_rejected", f"the guard withheld the answer: {why}")

"""Requests and answers that wait for a person, as clients and reviewers see them.

raise await reviews.hold(journey, call, "input", reasons)     # 202 with the address to ask at
reviews.shown(key, review_id)                                 # its state, for a poll
await reviews.decide(key, review_id, body)                    # by a key with the role reviewer
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from factory.gateway.answers import Answer
from factory.gateway.body import parse
from factory.gateway.call import Asked, Call
from factory.gateway.clock import Clock
from factory.gateway.completions import parse_completion
from factory.gateway.embedding_body import parse_embeddings
from factory.gateway.engine import Route
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.fields import Parser, Strict
from factory.gateway.journey import Journey
from factory.gateway.replies import Stamp, render
from factory.gateway.store_bodies import StoreFile, StoreMake, StoreSearch
from factory.ledger import reviews
from factory.ledger.errors import LedgerError, LedgerUnavailable
from factory.ledger.keys import ApiKey
from factory.ledger.reviews import Review, Stage
from factory.ledger.store import Ledger

PATIENCE = timedelta(days=7)
"""How long a review waits for a person, or an approved one for a poll, before it is given up."""

POLL_S = 5
"""Seconds after which a waiting client may ask again."""


ASYNC = "respond-async"
"""The preference (RFC 7240) of clients who would rather ask again than wait."""


def new_id() -> str:
    """A fresh review id."""
    return f"review-{uuid.uuid4().hex}"


class Held(ApiError):
    """202: nothing is wrong, but a person must decide first."""

    def __init__(self, review: Review) -> None:
        why = "; ".join(review.reasons) or "a person must look at it"
        super().__init__(
            202,
            "held_for_review",
            f"held for review: {why}",
            headers={"Location": f"/v1/reviews/{review.review_id}", "Retry-After": str(POLL_S)},
        )
        self.review = review

    def payload(self) -> dict[str, Any]:
        """The review object, ready for JSON."""
        return shown(self.review)


class DecisionBody(Strict):
    """What a reviewer decides."""

    decision: Literal["approve", "edit", "reject"]
    """`edit` replaces the question, or at the stage `output` the answer, by `text`."""
    text: str | None = Field(default=None, max_length=reviews.MAX_TEXT)
    note: str = Field(default="", max_length=4_000)


_DECISIONS = Parser(DecisionBody)


def shown(review: Review) -> dict[str, Any]:
    """A review as clients see it."""
    return {
        "id": review.review_id,
        "object": "review",
        "created": int(review.created_at.timestamp()),
        "status": review.status,
        "stage": review.stage,
        "endpoint": review.endpoint,
        "request_id": review.request_id,
        "reasons": list(review.reasons),
        "decided_by": review.decided_by,
        "note": review.note,
        "result": review.result,
    }


class Reviews:
    """The queue of one ledger."""

    def __init__(self, ledger: Ledger, clock: Clock, ids: Callable[[], str] = new_id) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    async def hold(
        self,
        journey: Journey,
        call: Call[Any],
        stage: Stage,
        reasons: tuple[str, ...],
        answer: Answer | None = None,
    ) -> Held:
        """Put a request, or an answer to it, into the queue; the error tells the client.

        Raises `ApiError` 503 when the queue does not take it.
        """
        request = call.request.model_dump(mode="json", exclude_none=True, by_alias=True)
        review = Review(
            review_id=self._ids(),
            created_at=self._clock.now(),
            request_id=journey.request_id,
            team=journey.key.team,
            endpoint=call.name,
            key_id=journey.key.key_id,
            stage=stage,
            reasons=reasons,
            request={"route": call.request.route, "body": request},
            answer=None if answer is None else _packed(answer, journey),
        )
        try:
            await asyncio.to_thread(reviews.open_review, self._ledger, review)
        except LedgerError as error:
            raise unavailable("the review queue takes nothing now; try again soon") from error
        journey.reasons.append(f"held as {review.review_id}")
        return Held(review)

    async def later(self, journey: Journey, call: Call[Any], why: str) -> Held:
        """Keep a request that nobody needs to decide about; the first poll that can answers it.

        Raises `ApiError` 503 when the queue does not take it.
        """
        held = await self.hold(journey, call, "input", (why,))
        try:
            decided = await asyncio.to_thread(
                reviews.decide,
                self._ledger,
                held.review.review_id,
                "approve",
                ASYNC,
                "",
                at=self._clock.now(),
            )
        except LedgerError as error:
            raise unavailable("the queue takes nothing now; try again soon") from error
        later = Held(decided)
        later.headers["Preference-Applied"] = ASYNC
        return later

    async def get(self, key: ApiKey, review_id: str) -> Review:
        """A review of the key's own team. Raises `ApiError` 404."""
        found = await asyncio.to_thread(reviews.get, self._ledger, review_id)
        mine = "reviewer" in key.roles or (found is not None and found.key_id == key.key_id)
        if found is None or found.team != key.team or not mine:
            raise ApiError(404, "review_not_found", f"your team has no review '{review_id[:80]}'")
        return found

    async def give_up(self) -> list[str]:
        """Let expire what waited too long; returns the ids. Raises `LedgerError`."""
        now = self._clock.now()
        return await asyncio.to_thread(reviews.expire, self._ledger, now - PATIENCE, at=now)

    async def waiting(self, key: ApiKey, status: str | None) -> list[Review]:
        """The team's reviews, oldest first; what waited too long is given up.

        Raises `ApiError` 400, 403.
        """
        _reviewer(key)
        await self.give_up()
        try:
            return await asyncio.to_thread(reviews.list_reviews, self._ledger, key.team, status)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            raise ApiError(400, "invalid_value", str(error), param="status") from error

    async def decide(self, key: ApiKey, review_id: str, raw: bytes) -> Review:
        """Decide a pending review. Raises `ApiError` 400, 403, 404, 409."""
        _reviewer(key)
        wanted = _DECISIONS.parse(raw)
        if (wanted.decision == "edit") != bool(wanted.text):
            raise ApiError(
                400, "invalid_value", "an edit needs a text, and only an edit has one", param="text"
            )
        await self.get(key, review_id)
        try:
            return await asyncio.to_thread(
                reviews.decide,
                self._ledger,
                review_id,
                wanted.decision,
                key.key_id,
                wanted.note,
                wanted.text,
                at=self._clock.now(),
            )
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            raise ApiError(409, "review_decided", str(error)) from error

    async def claim(self, review: Review) -> Review | None:
        """Take an approved or edited review to answer it; None when nothing is to be done."""
        if review.status not in ("approved", "edited"):
            return None
        return await asyncio.to_thread(
            reviews.claim, self._ledger, review.review_id, at=self._clock.now()
        )

    async def finish(self, review: Review, status: int, body: bytes) -> Review:
        """Keep what came of it."""
        result = {"status": status, "body": json.loads(body)}
        return await asyncio.to_thread(
            reviews.finish,
            self._ledger,
            review.review_id,
            result,
            at=self._clock.now(),
            failed=status != 200,
        )


_PARSERS: dict[Route, Callable[[bytes], Asked]] = {
    "chat": parse,
    "completions": parse_completion,
    "embeddings": parse_embeddings,
    "store": Parser(StoreMake).parse,
    "file": Parser(StoreFile).parse,
    "search": Parser(StoreSearch).parse,
}


def request_of(review: Review) -> Asked:
    """The request that was held, with the question that a person wrote instead, not streamed."""
    body = dict(review.request["body"])
    body.pop("stream", None)
    body.pop("stream_options", None)
    raw = to_json(body)
    request = _PARSERS[review.request["route"]](raw)
    if review.text is None or review.stage == "output":
        return request
    texts = list(request.texts)
    question = request.last_question if request.route == "chat" else texts[0]
    place = len(texts) - 1 - texts[::-1].index(question) if question in texts else len(texts) - 1
    texts[place] = review.text
    return request.with_texts(texts)


def _packed(answer: Answer, journey: Journey) -> dict[str, Any]:
    return {"answer": answer.as_dict(), "label": journey.served.label if journey.served else ""}


def answer_of(review: Review) -> bytes:
    """The completion that was held, with the answer that a person wrote instead."""
    kept = review.answer or {}
    answer = Answer.from_dict(kept["answer"])
    if review.text is not None:
        answer = answer.with_texts((review.text, *answer.texts[1:]))
    request = request_of(review)
    rendered = render(answer, kept["label"], request.shows_logprobs, request.route)
    return rendered.completion(Stamp(review.request_id, int(review.created_at.timestamp())))


def _reviewer(key: ApiKey) -> None:
    if "reviewer" not in key.roles:
        raise ApiError(
            403,
            "role_required",
            "deciding needs a key with the role reviewer; "
            "`factory keys create --role reviewer` makes one",
        )

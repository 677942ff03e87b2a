"""Carries out what a person decided about a held request, when somebody asks for it.

reply = await verdicts.poll(authorization, review_id)    # answers what a person let pass
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from pydantic_core import to_json

from factory.gateway.admission import Admission
from factory.gateway.awakening import Awakening
from factory.gateway.call import Asked
from factory.gateway.errors import ApiError
from factory.gateway.journey import Journey
from factory.gateway.replies import Reply
from factory.gateway.reviews import ASYNC, POLL_S, Reviews, answer_of, request_of, shown
from factory.gateway.served import Served
from factory.gateway.settlement import Settlement
from factory.ledger.keys import list_keys
from factory.ledger.reviews import Review
from factory.ledger.store import Ledger

Answering = Callable[[Journey, Asked, bool], Awaitable[Reply]]
"""Answers a request, past the guard's reviews where a person approved it, and settles it."""


class Verdicts:
    """The decided reviews of one gateway."""

    def __init__(
        self,
        reviews: Reviews,
        ledger: Ledger,
        admission: Admission,
        settlement: Settlement,
        awakening: Awakening,
        served: Callable[[str, str], Mapping[int, Served]],
        answer: Answering,
    ) -> None:
        """`served` says who would answer for a model's name and an endpoint."""
        self._reviews = reviews
        self._ledger = ledger
        self._admission = admission
        self._settlement = settlement
        self._awakening = awakening
        self._served = served
        self._answer = answer

    async def poll(self, authorization: str | None, review_id: str) -> Reply:
        """A review, for those whom it concerns. What a person let pass is answered now.

        Raises `ApiError` 401, 404.
        """
        key = await self._admission.key(authorization)
        review = await self._reviews.get(key, review_id)
        if review.decided_by == ASYNC and review.status == "approved":
            named = str(review.request["body"].get("model"))
            if sleeping := lowest_asleep(self._served(named, review.endpoint)):
                self._awakening.wake(sleeping)
                return Reply(to_json(shown(review)), {"Retry-After": str(POLL_S)})
        claimed = await self._reviews.claim(review)
        if claimed is not None:
            review = await self._settlement.finish(self._carry_out(claimed))
        return Reply(to_json(shown(review)), {})

    async def _carry_out(self, review: Review) -> Review:
        """Answer what was held, as its own client, and keep the reply for whoever polls."""
        try:
            if review.stage == "output":
                reply = answer_of(review)
            else:
                reply = await self._answered(review)
        except ApiError as error:
            return await self._reviews.finish(review, error.status, error.body())
        return await self._reviews.finish(review, 200, reply)

    async def _answered(self, review: Review) -> bytes:
        keys = await asyncio.to_thread(list_keys, self._ledger, review.team)
        key = next((one for one in keys if one.key_id == review.key_id), None)
        if key is None or key.revoked_at is not None:
            raise ApiError(401, "invalid_api_key", "the key that asked was revoked meanwhile")
        request = request_of(review)
        journey = self._admission.journey(key, request.route)
        journey.reasons.append(f"{review.review_id}: {review.status} by {review.decided_by}")
        async with self._settlement.of(journey, lambda: not journey.pays):
            reply = await self._answer(journey, request, review.decided_by != ASYNC)
        return reply.body


def lowest_asleep(served: Mapping[int, Served]) -> Served | None:
    """The model of the lowest tier, where requests begin, if it is asleep."""
    lowest = served[min(served)] if served else None
    return lowest if lowest is not None and lowest.asleep else None

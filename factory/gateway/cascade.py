"""The climb: ask a tier, judge its answer, and follow `factory.routing.ladder` to the next step.

    cascade = Cascade(planned, journey, rules)
    final = await cascade.run(wants_stream=False)      # Final; ApiError 400, 429 or 503
    final = await cascade.run(wants_stream=True)       # Final, or Live from the last possible tier

Money is held for every attempt before it begins, and every attempt leaves its own charge, also the
ones whose answer is not sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from factory.gateway.answers import Answer, Gathering, Length, whole
from factory.gateway.breakers import Breakers
from factory.gateway.engine import Body, Chunk, Engine, EngineError, with_logprobs
from factory.gateway.errors import ApiError, unavailable
from factory.gateway.experience import Experience
from factory.gateway.journey import Journey
from factory.gateway.patience import Patience, TooSlow, as_engine_error, ended_early, in_time
from factory.gateway.plan import Plan
from factory.gateway.purse import Denial
from factory.gateway.served import Served
from factory.routing.confidence import Verdict, judge
from factory.routing.consistency import agree
from factory.routing.ladder import Step, Tried, next_step
from factory.routing.patience import Allowed, attempt

SAMPLING_TEMPERATURE = 0.7
"""Of sampled answers, which would otherwise all be the same (Wang et al., ICLR 2023)."""


@dataclass(frozen=True, slots=True)
class Final:
    """An answer that may be sent."""

    served: Served
    answer: Answer
    cacheable: bool


@dataclass(slots=True)
class Live:
    """A stream that has begun, from a tier that no other will follow."""

    served: Served
    stream: AsyncGenerator[Chunk, None]
    first: Chunk
    gathering: Gathering
    prompt_tokens: Length
    opened: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for one request's attempts."""

    threshold: Callable[[int], float]
    """By tier: an answer whose confidence is lower asks for the next one."""
    patience: Patience
    jitter: Callable[[], float]
    """A random number between 0 and 1."""
    breakers: Breakers
    hold: Callable[[int, Callable[[], int]], Awaitable[Denial | None]]
    """Holds nano-dollars for the next attempt, or says why not: an upper bound, or the exact amount
    where that matters."""
    samples: int
    """Answers sampled from a tier whose answer is judged; more than one are judged by agreement."""
    experience: Experience
    """Learns from every attempt."""
    unfit: Callable[[Answer], str]
    """Why an answer cannot be sent whatever its confidence; empty when it can."""


class Cascade:
    """One request's attempts."""

    def __init__(self, plan: Plan, journey: Journey, rules: Rules) -> None:
        self.plan = plan
        self.journey = journey
        self.rules = rules
        self.patience = rules.patience
        self._route = plan.call.request.route
        self._denial: Denial | None = None
        self._tried: list[Tried] = []
        self._answers: dict[int, Answer] = {}
        self._error: EngineError | None = None

    async def run(self, wants_stream: bool) -> Final | Live:
        """Climb until an answer may be sent, or, for a stream, until the last tier has begun.

        Raises `ApiError`: 400 when the engine finds the request at fault, 429 when no attempt can
        be paid, 503 when nothing answers.
        """
        journey = self.journey
        journey.reasons += self.plan.route.reasons
        journey.degraded |= self.plan.route.degraded
        while True:
            step = self._next()
            if step.tier is None:
                raise self._refusal()
            served = self.plan.call.served[step.tier]
            if step.action == "answer":
                return self._final(served, step)
            if step.retry:
                await asyncio.sleep(self._pause())
            if not await self._permitted(served):
                continue
            if not wants_stream:
                await self._attempt(served, collect=False)
            elif self._may_climb(served.tier):
                await self._attempt(served, collect=True)
            elif live := await self._open(served):
                return live

    def _next(self) -> Step:
        step = next_step(self.plan.ladder, self.plan.start, self._tried)
        if self._tried:
            self.journey.reasons += step.reasons
        self.journey.degraded |= step.degraded
        return step

    def _final(self, served: Served, step: Step) -> Final:
        assert step.tier is not None
        answer = self._answers[step.tier]
        failures = any(one.failure for one in self._tried)
        return Final(served, answer, cacheable=not (step.degraded and failures))

    async def _permitted(self, served: Served) -> bool:
        """Hold money for an attempt; one that cannot be paid or tried counts as failed."""
        tier = served.tier
        if why_not := self.rules.breakers.begin(served):
            self._tried.append(Tried(tier, failure=why_not))
            return False
        longest = self.plan.longest_answers[tier] * self._choices(tier)
        denial = await self.rules.hold(
            served.price.nano_usd(self.plan.prompt_tokens[tier], longest),
            lambda: served.price.nano_usd(self.plan.length(tier), longest),
        )
        if denial is None:
            return True
        if denial.final and not self._answers:
            raise denial.error
        self._denial = denial
        self._tried.append(Tried(tier, failure=denial.error.message))
        return False

    def _time(self, served: Served, *, whole: bool) -> Allowed:
        """How long an attempt may take: little where another answer could stand in."""
        most_s = self.patience.attempt_s if whole else self.patience.first_token_s
        asked = {served.tier, *(one.tier for one in self._tried)}
        if not self._answers and asked.issuperset(self.plan.ladder.usable):
            return Allowed(seconds=most_s, reason="")
        call = self.plan.call
        return attempt(
            whole=whole,
            tokens=self.plan.longest_answers[served.tier],
            target_ms=call.endpoint.target.ttft_ms,
            usual=self.rules.experience.usual(call.name, served.tier),
            most_s=most_s,
        )

    def _may_climb(self, tier: int) -> bool:
        asked = {one.tier for one in self._tried}
        return any(other not in asked for other in self.plan.ladder.above(tier))

    def _pause(self) -> float:
        wait = self._error.retry_after_s if self._error else None
        return self.patience.retry_s * (1 + self.rules.jitter()) if wait is None else wait

    def body(self, served: Served) -> Body:
        """What `served` is asked, with log-probabilities where its answer will be judged."""
        body = self.plan.bodies[served.tier]
        if not self.plan.ladder.judged(served.tier):
            return body
        if (count := self._choices(served.tier)) > self.plan.call.request.choices:
            warmth = max(body.get("temperature") or 0.0, SAMPLING_TEMPERATURE)
            return {**body, "n": count, "temperature": warmth}
        return with_logprobs(body, self._route)

    def _choices(self, tier: int) -> int:
        """How many answers a tier is asked for."""
        wanted = self.plan.call.request.choices
        sampled = wanted == 1 and self.plan.ladder.judged(tier)
        return self.rules.samples if sampled else wanted

    def verdict(self, tier: int, answer: Answer) -> Verdict:
        """The judgement of an answer; one that nothing stands above is accepted as it is."""
        if not self.plan.ladder.judged(tier):
            return Verdict(True, None, (f"tier {tier} is the endpoint's highest",))
        if unfit := self.rules.unfit(answer):
            return Verdict(False, None, (unfit,))
        return judge(answer.token_logprobs, self.rules.threshold(tier))

    def _typical(self, tier: int, answer: Answer) -> tuple[Answer, Verdict]:
        """Of several sampled answers the most typical one, judged by how the others agree."""
        if len(answer.choices) <= self.plan.call.request.choices:
            return answer, self.verdict(tier, answer)
        found = agree([choice.text for choice in answer.choices], self.rules.threshold(tier))
        chosen = replace(answer, choices=(answer.choices[found.best],))
        if unfit := self.rules.unfit(chosen):
            return chosen, Verdict(False, None, (unfit,))
        return chosen, found.verdict

    async def _attempt(self, served: Served, collect: bool) -> None:
        """Ask for a whole answer. `collect` streams it, so that leaving stops the generation."""
        prompt_tokens = partial(self.plan.length, served.tier)
        gathering = Gathering(expected=self._choices(served.tier))
        begun = self.journey.clock.monotonic()
        reason = "the client left"
        unfinished = True
        answer: Answer | None = None
        allowed = self._time(served, whole=True)
        try:
            async with in_time(allowed):
                if collect:
                    await self._collect(served, gathering)
                    answer = gathering.answer(prompt_tokens)
                else:
                    completion = await _engine(served).answer(self.body(served), self._route)
                    answer = whole(completion, prompt_tokens)
            latency_ms = (self.journey.clock.monotonic() - begun) * 1000
            reason = self._judge(served, answer, latency_ms)
            unfinished = False
        except Exception as error:
            unfinished = isinstance(error, TimeoutError | TooSlow)
            reason = self._failed(served, error)
        finally:
            self.charge(served, answer, gathering, prompt_tokens, begun, reason, unfinished)

    def charge(
        self,
        served: Served,
        answer: Answer | None,
        gathering: Gathering,
        prompt_tokens: Length,
        begun: float,
        reason: str,
        unfinished: bool,
    ) -> None:
        """Charge one attempt that began at `begun`.

        Without an answer, what has arrived is charged. An engine that was left `unfinished` has
        read the prompt even if nothing arrived; one that failed at once has done nothing.
        """
        latency = self.journey.clock.monotonic() - begun
        self.journey.engine_s += latency
        arrived = bool(gathering.parts) or gathering.usage is not None
        spent = answer
        if spent is None and (arrived or unfinished):
            spent = gathering.answer(prompt_tokens)
        if spent is None:
            self.journey.charge(served, 0, 0, latency * 1000, reason)
            return
        if spent.estimated:
            reason += "; token counts estimated"
        self.journey.charge(
            served, spent.prompt_tokens, spent.completion_tokens, latency * 1000, reason
        )

    async def _collect(self, served: Served, gathering: Gathering) -> None:
        async with aclosing(_engine(served).stream(self.body(served), self._route)) as stream:
            async with in_time(self._time(served, whole=False)):
                first = await anext(stream, None)
            if first is None:
                raise ended_early()
            gathering.add(first)
            async for chunk in stream:
                gathering.add(chunk)
        if gathering.finish_reason is None:
            raise ended_early()

    def _judge(self, served: Served, answer: Answer, latency_ms: float) -> str:
        answer, verdict = self._typical(served.tier, answer)
        self.rules.experience.answered(
            self.plan.call.name,
            served.tier,
            latency_ms=latency_ms,
            completion_tokens=answer.completion_tokens,
            accepted=verdict.accept,
        )
        self.rules.breakers.succeeded(served)
        self._answers[served.tier] = answer
        self._tried.append(Tried(served.tier, verdict))
        if verdict.confidence is not None:
            self.journey.confidence = verdict.confidence
            self.journey.confidences[served.tier] = verdict.confidence
        return verdict.reasons[0]

    def _failed(self, served: Served, error: Exception) -> str:
        problem = as_engine_error(error)
        self._error = problem
        if not problem.rejected:
            self.rules.breakers.failed(served)
        wait = problem.retry_after_s
        soon = wait is None or wait <= self.patience.longest_retry_s
        self._tried.append(
            Tried(
                served.tier,
                failure=problem.message,
                retryable=problem.retryable and soon,
                rejected=problem.rejected,
            )
        )
        return f"failed: {problem.message}"

    async def _open(self, served: Served) -> Live | None:
        """Begin a stream and wait for its first chunk; None, with a charge, when it fails."""
        begun = self.journey.clock.monotonic()
        stream = _engine(served).stream(self.body(served), self._route)
        prompt_tokens = partial(self.plan.length, served.tier)
        gathering = Gathering(expected=self._choices(served.tier))
        reason = "the client left"
        unfinished = True
        try:
            async with in_time(self._time(served, whole=False)):
                first = await anext(stream, None)
            if first is None:
                raise ended_early()
            gathering.add(first)
            reason = ""
            ttft_ms = (self.journey.clock.monotonic() - begun) * 1000
            self.rules.experience.began(self.plan.call.name, served.tier, ttft_ms=ttft_ms)
            return Live(served, stream, first, gathering, prompt_tokens, begun)
        except Exception as error:
            unfinished = isinstance(error, TimeoutError | TooSlow)
            reason = self._failed(served, error)
            return None
        finally:
            if reason:
                await stream.aclose()
                self.charge(served, None, gathering, prompt_tokens, begun, reason, unfinished)

    def charge_partial(self, live: Live, reason: str) -> None:
        """Charge a live stream that ends before its end, and note what was sent of it."""
        self.charge(
            live.served, None, live.gathering, live.prompt_tokens, live.opened, reason, True
        )
        charge = self.journey.charges[-1]
        self.journey.answered(
            live.served, live.served.tier, charge.prompt_tokens, charge.completion_tokens
        )

    def finish(self, live: Live, answer: Answer) -> bool:
        """Judge and charge a live answer after its last token; False when it must not be kept."""
        served = live.served
        latency_ms = (self.journey.clock.monotonic() - live.opened) * 1000
        reason = self._judge(served, answer, latency_ms)
        self.charge(served, answer, live.gathering, live.prompt_tokens, live.opened, reason, False)
        failures = any(one.failure for one in self._tried)
        step = self._next()
        return not (step.degraded and failures)

    def _refusal(self) -> ApiError:
        error = self._error
        if error is not None and error.rejected:
            return ApiError(400, "rejected_by_model", error.message)
        if error is None and self._denial is not None:
            return self._denial.error
        what = error.message if error else "no model may answer"
        return unavailable(f"no model could answer: {what}", (error and error.retry_after_s) or 1.0)


def _engine(served: Served) -> Engine:
    assert served.engine is not None, f"{served.label} makes embeddings"
    return served.engine

"""Tier 0's rules: questions whose answer an endpoint's owner has written down.

    rules = Rules(endpoint.rules)
    rules.answer(request)    # (answer, "rule 1 matches"), or None

A rule must match the whole last question, in RE2, so no question can make it slow.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory.config import Rule
from factory.gateway.answers import Answer, Choice, estimate_tokens
from factory.gateway.call import Request
from factory.gateway.guard.patterns import compiled

LABEL = "rules"
"""The model that clients are told."""


class Rules:
    """The rules of one endpoint, in their order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(compiled(rule.pattern), rule.answer) for rule in rules]

    def answer(self, request: Request) -> tuple[Answer, str] | None:
        """The answer of the first rule that matches, and why; None when none does, or when the
        request wants tools or JSON, which a rule does not give."""
        question = request.last_question
        if not self._rules or question is None or request.uses_tools or request.wants_json:
            return None
        for number, (pattern, text) in enumerate(self._rules, start=1):
            if pattern.fullmatch(question.strip()):
                prompt = sum(estimate_tokens(len(one)) for one in request.texts)
                spoken = estimate_tokens(len(text)) * request.choices
                choices = (Choice(text=text, finish_reason="stop"),) * request.choices
                return Answer(choices, prompt, spoken, estimated=True), f"rule {number} matches"
        return None

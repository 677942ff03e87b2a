"""Answers of tier 0 by rule."""

from __future__ import annotations

import pytest
from conftest import CONFIG, made

from factory.config import ConfigError, parse

RULED = CONFIG.replace(
    "cheap: {team: support, tiers: [0, 1]}",
    "cheap: {team: support, tiers: [0, 1], "
    'rules: [{pattern: "(?i)hello[.!]*", answer: Hi there.}]}',
)


async def test_a_rule_answers_without_a_model_for_nothing(folder):
    async with made(folder, RULED) as world:
        reply = await world.ask("Hello!", model="cheap")
        assert reply.json()["choices"][0]["message"]["content"] == "Hi there."
        assert reply.headers["x-factory-tier"] == "0"
        request, (charge,) = world.recorded(reply)
        assert (request.cost_nusd, charge.kind, charge.reason) == (0, "rule", "rule 1 matches")
        streamed = await world.ask("hello", model="cheap", stream=True)
        assert "Hi there." in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert not world.small.bodies


async def test_a_rule_must_match_the_whole_question(folder):
    async with made(folder, RULED) as world:
        reply = await world.ask("hello, which module?", model="cheap")
        assert reply.headers["x-factory-tier"] == "1"
        form = {"type": "json_object"}
        world.small.default.words = ('{"a": 1}',)
        assert (await world.ask("hello", model="cheap", response_format=form)).is_success
        assert len(world.small.bodies) == 2


def test_a_rule_that_is_no_pattern_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="pattern"):
        parse(RULED.replace("(?i)hello[.!]*", "(hello"), "test", tmp_path, {})

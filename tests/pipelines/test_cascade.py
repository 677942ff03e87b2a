"""The student below its teacher: the configuration that serves both, and what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import config
from factory.config import ConfigError, RegistrySource
from pipelines.cascade import STUDENT, TEACHER, Pass, compared, with_student, write_config
from pipelines.traffic import Kind, Reply, Request


def packaged() -> dict[str, Any]:
    return dict(yaml.safe_load(config.default_text()))


def test_the_student_stands_below_its_teacher_on_every_endpoint_that_generates() -> None:
    before = packaged()
    made = with_student(before)
    settings = config.parse(yaml.safe_dump(made), "made", Path(), {})

    assert before == packaged(), "the document that came in is left alone"
    for name in ("helpdesk", "helpdesk-batch"):
        rungs = {model.tier: key for key, model in settings.ladder(settings.endpoints[name])}
        assert (rungs[1], rungs[2]) == (STUDENT, TEACHER)
    assert settings.endpoints["search"].tiers == (0, 1)
    student, teacher = settings.models[STUDENT], settings.models[TEACHER]
    assert isinstance(student.source, RegistrySource)
    assert 2 * student.price.nano_usd(1000, 1000) == teacher.price.nano_usd(1000, 1000)
    assert settings.gates[STUDENT] == settings.gates["helpdesk"]


def test_a_teacher_that_is_not_on_tier_1_is_told() -> None:
    with pytest.raises(ConfigError, match="has to stand on tier 1"):
        with_student(with_student(packaged()))


def test_the_file_keeps_names_of_secrets_and_the_home_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(config.default_text(), "utf-8")
    target = tmp_path / "demo" / "factory.yaml"
    write_config(file, tmp_path / "state", target)

    assert "${PREMIUM_API_KEY}" in target.read_text("utf-8")
    assert config.load(target, {}).home == tmp_path / "state"
    crowded = packaged()
    crowded["models"]["other"] = {**crowded["models"][TEACHER], "tier": 2}
    file.write_text(yaml.safe_dump(crowded), "utf-8")
    with pytest.raises(ConfigError, match="more than one model stands on tier 2"):
        write_config(file, tmp_path / "state", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def reply(kind: Kind, says: str, latency_ms: float, reason: str, cache: str = "miss") -> Reply:
    return Reply(
        request=Request(kind=kind, endpoint="helpdesk", content=b"{}", expected="json"),
        status=200,
        latency_ms=latency_ms,
        text=says,
        headers={"x-factory-route-reason": reason, "x-factory-cache": cache},
    )


def sent(replies: list[Reply], cost_nusd: int, seconds: float) -> Pass:
    accounted = {"costs": {"cost_nusd": cost_nusd}, "tiers": [{"tier": 1, "share": 1.0}]}
    return Pass(replies=replies, accounted=accounted, seconds=seconds)


def test_what_the_cascade_saves_is_counted_by_answer_and_by_right_answer() -> None:
    alone = sent(
        [
            reply("easy", "json", 90, "tier 1 asked first"),
            reply("stream", "json", 70, "tier 1 asked first"),
            reply("hard", "os", 80, "tier 1 asked first"),
            reply("repeat", "json", 1, "exact", "hit"),
        ],
        4_000,
        2.0,
    )
    both = sent(
        [
            reply("easy", "json", 30, "tier 1 asked first; confidence 0.9 >= 0.7"),
            reply("stream", "os", 40, "tier 1 asked first; confidence 0.8 >= 0.7"),
            reply("hard", "json", 90, "tier 1 asked first; confidence 0.1 < 0.7: climb to tier 2"),
            reply("repeat", "json", 1, "exact", "hit"),
        ],
        3_000,
        1.0,
    )
    found = compared(alone, both, nusd_per_hour=3_600_000)

    assert found["teacher"]["cost_per_1k_nusd"] == 1_000_000
    assert found["cascade"]["cost_per_1k_nusd"] == 750_000
    assert found["saving"] == pytest.approx(0.25)
    assert found["teacher"]["cost_per_1k_right_usd"] == "0.001333333"
    assert found["teacher"]["machine_per_1k_usd"] == "0.000500000"
    assert (found["asked_student"], found["climbed"]) == (3, 1)
    assert found["questions"] == 3, "a repeat says nothing new about quality"
    assert found["difference"][1] == 0
    assert found["cascade"]["answers_per_s"] == 3.0
    assert found["cascade"]["p50_ms"] == 40

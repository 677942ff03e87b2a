"""Synthetic examples: written over HTTP, screened, marked, and kept away from what judges."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from factory import config as factory_config
from factory.catalog.objects import ObjectStore
from factory.config import Settings
from factory.evaluation.suite import Case, Suite, SuiteError
from factory.evaluation.suite import write as write_suite
from factory.training import dataset
from factory.training.errors import TrainingError
from pipelines import candidate, synthesize
from pipelines.synthesize import Chat, Endpoint
from tests.gateway.provider_server import Play, Provider
from tests.training import tiny

WRITTEN = [
    "It turns a mapping into text that other programs read",
    "It turns a mapping into text that other programs read!",
    "serialise decode object number 0",
    "The question that the suite asks about certificates already",
    "my password: hunter2! is what this one gives away",
    "",
    "What the judge takes for another one entirely and will not confirm",
    "x" * 2000,
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return factory_config.parse(
        factory_config.default_text(), "default", tmp_path, {"FACTORY_HOME": str(tmp_path / "home")}
    )


def case(text: str, **more: object) -> Case:
    messages = [{"role": "user", "content": text}]
    return Case.model_validate({"id": "c", "messages": messages, "expected": "json", **more})


def suite(text: str) -> Suite:
    return Suite.build(name="desk", version=1, scorer="exact", cases=[case(text)])


def write(chats: Sequence[Chat], temperature: float) -> list[str | None]:
    return [WRITTEN[at % len(WRITTEN)] or None for at, _ in enumerate(chats)]


def confirm(chats: Sequence[Chat], temperature: float) -> list[str | None]:
    """Answers with whatever label the draft's own words hint at; never sure of the last one."""
    return ["os" if "another one" in chat[-1]["content"] else "It is json." for chat in chats]


def made(settings: Settings, data: Path, **changes: object) -> tuple[Path, dict[str, int]]:
    arguments: dict[str, object] = {
        "count": 8,
        "out": "more",
        "seed": 1,
        "temperature": 0.9,
        "facts": {"model": "scripted"},
        "say": lambda text: None,
    }
    stored, rejected = synthesize.synthesize(
        settings,
        str(data),
        write,
        confirm,
        **(arguments | changes),  # type: ignore[arg-type]
    )
    return stored.path, rejected


def test_each_screen_rejects_what_it_is_for_and_what_is_kept_is_marked(
    settings: Settings, tmp_path: Path
) -> None:
    store = ObjectStore(settings.objects)
    asks = suite("The question that the suite asks about certificates already")

    def fill(folder: Path) -> None:
        write_suite(asks, folder / "desk.suite")

    store.put("suites", "desk", fill)
    rows = [one for one in tiny.examples(24) if one.label == "json"]
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    split = {"train": rows[:4], "validation": rows[4:]}
    dataset.write(seeds, split, dataset.card(split, name="seeds"))
    path, rejected = made(settings, seeds)
    train = dataset.read(path, ["train"])["train"]
    new = [one for one in train if one.synthetic]
    assert [synthesize.asked(one) for one in new] == [WRITTEN[0]]
    assert new[0].label == "json"
    assert new[0].messages[0].content == tiny.SYSTEM
    rounds = synthesize.TRIES
    assert rejected["no answer"] == rounds
    assert rejected["form"] == rounds
    assert rejected["asked by a suite"] == rounds
    assert rejected["judge"] == rounds
    assert rejected["guard"] == rounds
    assert rejected["duplicate"] == 3 * rounds - 1
    card = dataset.read_card(path)
    assert card["synthetic"] == {"train": 1, "validation": 0}
    assert card["generated_by"]["model"] == "scripted"
    assert dataset.read(path, ["validation"]) == {"validation": rows[4:]}

    generated = suite(WRITTEN[0].upper())
    with pytest.raises(SuiteError, match=r"case 'c'.*is the synthetic example 'synthetic:0'"):
        candidate.refuse_generated(store, generated)
    candidate.refuse_generated(store, asks)


def test_nothing_is_stored_when_nothing_passes(settings: Settings, tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "desk")
    with pytest.raises(TrainingError, match=r"not one draft passed .*no answer 32"):
        synthesize.synthesize(
            settings,
            str(data),
            lambda chats, _: [None] * len(chats),
            confirm,
            count=8,
            out="more",
            seed=1,
            temperature=0.9,
            facts={},
            say=lambda text: None,
        )
    assert ObjectStore(settings.objects).list("datasets") == []


def test_a_suite_with_a_synthetic_case_is_no_suite() -> None:
    with pytest.raises(SuiteError, match="case 'c' is synthetic, 1 in all"):
        Suite.build(
            name="desk", version=1, scorer="exact", cases=[case("who wrote this", synthetic=True)]
        )
    assert "synthetic" not in case("a person").model_dump()


def test_an_endpoint_is_asked_over_http_and_a_failure_is_no_answer() -> None:
    async def run() -> tuple[list[str | None], str | None]:
        provider = Provider(words=("a", " new", " question"))
        endpoint = Endpoint(provider.base_url, "sk-premium-secret-0123456789", "writer", 32, 7)
        chat = [{"role": "user", "content": "Another one."}]
        provider.script.append(Play(status=400))
        said = await asyncio.to_thread(endpoint, [chat, chat], 0.9)
        await provider.stop()
        return said, endpoint.error

    said, error = asyncio.run(run())
    assert Counter(said) == Counter([None, "a new question"])
    assert error is not None
    assert "scripted failure" in error

"""The pilot's data: nothing leaks, nothing is in two splits, the same seed gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.objects import Object, ObjectStore
from factory.evaluation import suite
from factory.training import dataset
from factory.training.dataset import DatasetError
from factory.training.prompts import read_prompts
from pipelines import helpdesk
from pipelines.stdlib_docs import Member, collect

NAMES = st.from_regex(r"[A-Za-z][a-zA-Z]{0,8}(_[a-z]{1,6})?", fullmatch=True)
TEXTS = st.lists(
    st.one_of(NAMES, st.sampled_from(["the", "socket's", "___", "a.b", "HTTP/2", "\n", "e-mail"])),
    max_size=20,
).map(" ".join)


def identifiers(label: str, name: str) -> set[str]:
    """Every identifier part of a name, worked out apart from the code under test."""
    whole = [label, *name.split(".")]
    parts = [part for item in whole for part in item.split("_")]
    camel = [hump for part in parts for hump in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", part)]
    return {item.lower() for item in [*whole, *parts, *camel] if item}


def words(text: str) -> Iterable[str]:
    return re.findall(r"[^\W_]+|\w+", text.lower())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Object, Object]:
    return helpdesk.build(ObjectStore(tmp_path_factory.mktemp("objects")))


@given(label=NAMES, names=st.lists(NAMES, min_size=1, max_size=3), text=TEXTS, data=st.data())
def test_no_part_of_the_name_survives(
    label: str, names: list[str], text: str, data: st.DataObject
) -> None:
    name = ".".join([label, *names])
    secret = data.draw(st.sampled_from(sorted(identifiers(label, name))))
    shape = data.draw(st.sampled_from(["{}", "{}s", "_{}", "x.{}()", "`{}`", "{}_x"]))
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    if len(secret) < 3:
        shape = shape.replace("s", "")
    masked = helpdesk.mask(f"{text} {shape.format(case(secret))} {text}", label, name)
    assert not identifiers(label, name) & set(words(masked))
    assert not {word for word in masked.lower().split() if label.lower() == word}
    assert helpdesk.mask(masked, label, name) == masked


def test_nothing_leaks_in_the_whole_data_set(made: tuple[Object, Object]) -> None:
    for examples in dataset.read(made[0].path).values():
        for example in examples:
            text = example.chat[1]["content"]
            assert not identifiers(example.label or "", example.id) & set(words(text)), example.id
            assert example.chat[0]["content"] == helpdesk.system_prompt(helpdesk.LABELS)
            assert example.chat[-1]["content"] == example.label


def test_no_group_and_no_text_is_in_two_splits(made: tuple[Object, Object]) -> None:
    split = dataset.read(made[0].path)
    rows = [example for part in split.values() for example in part]
    texts = [helpdesk.normal(example.chat[1]["content"]) for example in rows]
    assert len(set(texts)) == len(texts)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {row.group for row in split[one]} & {row.group for row in split[other]}
    for part in split.values():
        assert {example.label for example in part} == set(helpdesk.LABELS)
    assert len(split["train"]) > 800
    assert len(split["test"]) > 200


def test_the_card_says_what_is_there(made: tuple[Object, Object]) -> None:
    split = dataset.read(made[0].path)
    card = dataset.read_card(made[0].path)
    assert card["hash"] == dataset.dataset_hash(split)
    assert card["counts"] == {name: len(part) for name, part in split.items()}
    assert set(card["labels"]) == set(helpdesk.LABELS)
    assert card["licence"] == "PSF-2.0"


def test_the_suite_is_the_test_split_without_answers(made: tuple[Object, Object]) -> None:
    judge = suite.read(made[1].path)
    split = dataset.read(made[0].path, ["test"])["test"]
    assert [(case.id, case.expected) for case in judge.cases] == [
        (example.id, example.label) for example in split
    ]
    assert all(case.messages[-1].role == "user" for case in judge.cases)


def test_a_seed_gives_the_same_bytes_and_another_seed_another_split(
    made: tuple[Object, Object], tmp_path: Path
) -> None:
    store = ObjectStore(tmp_path)
    assert helpdesk.build(store)[0].hash == made[0].hash
    assert helpdesk.build(store, seed=8)[0].hash != made[0].hash


def test_an_ambiguous_text_is_dropped_and_a_repeated_one_kept_once() -> None:
    same = "Return the number of items that are waiting now."
    rows = helpdesk.examples(
        [
            Member("os", "os.A", "os.A.b", same),
            Member("ssl", "ssl.C", "ssl.C.d", same.upper()),
            Member("os", "os.E", "os.E.f", "Wait for a child to end and say how."),
            Member("os", "os.G", "os.G.h", "Wait for a child to end, and say how!"),
            Member("ssl", "ssl.I", "ssl.I.j", "Check the peer's certificate chain."),
        ],
        ["os", "ssl"],
    )
    assert [row.id for row in rows] == ["os.E.f", "ssl.I.j"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["json", "no_such_module_here"], "no such module"),
        (["os", "this_is", "os"], "at least two labels"),
        (["os"], "at least two labels"),
        (["os", "this"], "'this': no documented member"),
    ],
)
def test_a_label_that_gives_nothing_is_an_error(
    tmp_path: Path, labels: list[str], says: str
) -> None:
    store = ObjectStore(tmp_path)
    with pytest.raises(DatasetError, match=re.escape(says)):
        helpdesk.build(store, labels)
    assert store.list("datasets") == []


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path))
    assert helpdesk.main(["--label", "os", "--label", "no_such_module_here"]) == 1
    assert "no such module" in capsys.readouterr().err


def test_what_this_process_did_to_a_module_does_not_reach_the_data(
    made: tuple[Object, Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr(asyncio.sleep, "__doc__", "Something else that a library put here instead.")

    assert helpdesk.build(ObjectStore(tmp_path))[0].hash == made[0].hash


def test_unlabelled_questions_share_nothing_with_the_judging_splits(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    data, _ = helpdesk.build(store, ("json", "decimal"))
    split = dataset.read(data.path)
    repeated = split["test"][0].messages[1].content
    long = "words follow each other here " * 12
    members = [
        Member(one.label or "", one.group, one.id, long + one.id)
        for one in split["train"] + split["test"]
    ]
    first, judged = split["train"][0], split["test"][0]
    hidden = Member(first.label or "", first.group, first.id, "word " * helpdesk.STRIDE + repeated)
    within = Member("json", judged.group, f"{judged.group}._in", f"inside what is judged {long}")
    beside = Member("json", "json.Quiet", "json.Quiet._inner", f"said only to maintainers {long}")
    passing = Member("json", "json.Quiet", "json.Quiet._pass", "too little: ___ ___")
    rows = helpdesk.questions(
        split, [*members, hidden, within, beside, passing], ("json", "decimal")
    )
    named = {row["id"].split("+")[0] for row in rows}
    assert named & {one.id for one in split["train"]}
    assert named & {one.id for one in split["test"]} == set()
    assert {within.name, passing.name} & named == set()
    assert f"{beside.name}+0" in {row["id"] for row in rows}
    texts = [helpdesk.normal(row["messages"][1]["content"]) for row in rows]
    assert len(set(texts)) == len(texts)
    asked = {helpdesk.normal(one.messages[1].content) for one in split["test"]}
    assert asked.isdisjoint(texts)
    assert all(row["messages"][-1]["role"] == "user" for row in rows)


def test_private_members_are_found_on_demand() -> None:
    public, _ = collect(("mailbox",))
    inside, _ = collect(("mailbox",), inside=True)
    more = {one.name for one in inside} - {one.name for one in public}
    assert {one.name for one in public} < {one.name for one in inside}
    assert more
    assert all("._" in name and ".__" not in name for name in more)


def test_stored_questions_ask_nothing_of_what_a_suite_judges(tmp_path: Path) -> None:
    labels = ("json", "urllib")
    store = ObjectStore(tmp_path)
    split = dataset.read(helpdesk.build(store, labels)[0].path)
    found = read_prompts(helpdesk.build_prompts(store, labels).path)
    judged = {one.group for name in ("validation", "test") for one in split[name]}
    owners = {re.split(r"[+]", one.id)[0] for one in found}
    assert len(found) > len(split["train"])
    assert not owners & judged
    assert not any(owner.startswith(f"{group}.") for owner in owners for group in judged)

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.evaluation.suite import Case, Suite, SuiteError, read, write

HEADER = "---\nname: small\nversion: 2\nlabels: [json, os]\n---\n"
ROWS = [
    {"id": "a", "messages": [{"role": "user", "content": "one"}], "expected": "json"},
    {"id": "b", "messages": [{"role": "user", "content": "two"}], "expected": "os"},
]


def text(header: str = HEADER, rows: list[dict[str, object]] = ROWS) -> str:
    return header + "".join(json.dumps(row) + "\n" for row in rows)


def saved(folder: Path, content: str) -> Path:
    path = folder / "small.suite"
    path.write_text(content, "utf-8")
    return path


def test_written_suite_reads_back_equal(suite: Suite, tmp_path: Path) -> None:
    path = write(suite, tmp_path / "deep" / "small.suite")
    assert read(path) == suite
    assert read(path.parent).hash == suite.hash
    assert [file.name for file in path.parent.iterdir()] == ["small.suite"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_text_survives_writing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    try:
        cases = [
            Case.model_validate(
                {"id": str(i), "messages": [{"role": "user", "content": t}], "expected": "yes"}
            )
            for i, t in enumerate(texts)
        ]
    except ValueError:
        return
    built = Suite.build(name="any", version=1, labels=("yes",), cases=cases)
    assert read(write(built, tmp_path_factory.mktemp("s") / "any.suite")) == built


def test_hash_follows_content_not_form(tmp_path: Path) -> None:
    first = read(saved(tmp_path, text()))
    turned = [dict(reversed(list(row.items()))) for row in ROWS]
    header = "---\nversion: 2\nname: small\nlabels:\n- json\n- os\n---\n\n"
    assert read(saved(tmp_path, text(header, turned))).hash == first.hash
    assert read(saved(tmp_path, text(HEADER.replace("2", "3")))).hash != first.hash
    assert read(saved(tmp_path, text(rows=[ROWS[1], ROWS[0]]))).hash != first.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: a suite starts with a YAML header"),
        (text("---\nname: [\n---\n"), "not valid YAML"),
        (text("---\n- a\n---\n"), "line 2: the header must be a mapping"),
        (text("---\nname: small\nversion: 1\ncolour: red\n---\n"), "line 4: colour: unknown key"),
        (text("---\nname: small\nversion: zero\n---\n"), "line 3: version:"),
        (text("---\nname: small\nversion: 1\nscorer: bleu\n---\n"), "line 4: scorer:"),
        (text("---\nname: small\nversion: 1\nlabels: [yes]\n---\n"), "line 4: labels.0:"),
        (text(rows=[]), "has no cases"),
        (text(rows=[*ROWS, ROWS[0]]), "case id 'a' occurs twice"),
        (text(rows=ROWS[:1]), "label 'os' is never expected"),
        (text(rows=[*ROWS, {**ROWS[0], "id": "c", "expected": "xml"}]), "'xml' is not among"),
        (text(rows=[{**ROWS[0], "hint": 1}]), "line 6: hint: unknown key"),
        (text(rows=[ROWS[0], {"id": "b"}]), "line 7: messages:"),
        (text() + "{oops}\n", "line 8: not valid JSON"),
        (text(HEADER.replace("version: 2", "version: 2\nsynthetic: true")), "marked synthetic"),
        (text("---\nname: small\nversion: 1\n---\n"), "scorer 'mentions' needs labels"),
        (text("---\nname: s\nversion: 1\nlabels: [json, os, OS]\n---\n"), "differ only in case"),
    ],
)
def test_a_bad_file_is_one_sentence_that_says_where(
    tmp_path: Path, content: str, message: str
) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(SuiteError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": ""}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    ],
)
def test_a_case_ends_with_a_question(tmp_path: Path, messages: list[dict[str, str]]) -> None:
    path = saved(tmp_path, text(rows=[{**ROWS[0], "messages": messages}]))
    with pytest.raises(SuiteError, match="line 6: messages"):
        read(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="cannot read the suite"):
        read(tmp_path / "none.suite")
    with pytest.raises(SuiteError, match=r"holds 0 \*\.suite files"):
        read(tmp_path)
    (tmp_path / "bytes.suite").write_bytes(b"\xff\xfe")
    with pytest.raises(SuiteError, match="cannot read the suite"):
        read(tmp_path)


def test_a_wrong_file_name_is_refused(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"must end in \.suite"):
        write(suite, tmp_path / "small.jsonl")
    assert not list(tmp_path.iterdir())


def test_building_checks_the_header() -> None:
    with pytest.raises(SuiteError, match="suite header: version"):
        Suite.build(name="small", version=0, cases=())


def test_a_sample_is_seeded_and_has_its_own_hash(suite: Suite, tmp_path: Path) -> None:
    sample = suite.sample(4, seed=1)
    assert sample == suite.sample(4, seed=1)
    assert len(sample.cases) == 4
    assert len({suite.hash, sample.hash, suite.sample(4, seed=2).hash}) == 3
    assert sample.labels == suite.labels
    assert [case.id for case in suite.cases if case in sample.cases] == [c.id for c in sample.cases]
    assert read(write(sample, tmp_path / "part.suite")) == sample
    assert suite.sample(len(suite.cases), seed=1) is suite
    with pytest.raises(SuiteError, match="at least one case"):
        suite.sample(0, seed=1)

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from factory.training.dataset import DatasetError
from factory.training.intake import _parse, _pieces, read_files

ROWS = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(300)]


def parsed(path: Path, size: int) -> list[dict[str, Any]]:
    pieces = enumerate(_pieces(path, size))
    return [row for number, piece in pieces for row in _parse({"number": number, **piece})]


def lines(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("size", [1, 500, 10**6])
def test_pieces_keep_every_line_and_its_number(tmp_path: Path, size: int) -> None:
    rows = [json.dumps(row) for row in ROWS]
    rows[6] = ""
    rows[100] = "{broken"
    rows[200] = '{"text": "x"}'
    found = parsed(lines(tmp_path / "a.jsonl", rows), size)
    assert [row["line"] for row in found] == [n for n in range(1, 301) if n != 7]
    wrong = {row["line"]: row["error"] for row in found if row["error"]}
    assert set(wrong) == {101, 201}
    assert wrong[101].startswith("a.jsonl, line 101: not valid JSON")
    good = [json.loads(row["example"]) for row in found if row["example"]]
    assert good[-1]["messages"][1]["content"] == "299"


def test_a_file_without_a_last_newline_and_one_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n\xff\xfe")
    first, second = parsed(path, 10)
    assert first["example"]
    assert "line 2: not valid JSON" in second["error"]


def test_parquet_and_json_are_numbered_by_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([*ROWS[:10], {"instruction": "x", "output": ""}])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    found = parsed(tmp_path / "a.parquet", 1)
    assert [row["line"] for row in found] == list(range(1, 12))
    assert "a.parquet, row 11: messages.1.content" in found[-1]["error"]
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:3]), "utf-8")
    assert len(parsed(tmp_path / "a.json", 1)) == 3
    (tmp_path / "b.json").write_text("[", "utf-8")
    assert "not valid JSON" in parsed(tmp_path / "b.json", 1)[0]["error"]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x", "utf-8")
    (tmp_path / "a.parquet").write_text("x", "utf-8")
    for name, wrong in (
        ("a.csv", "give .jsonl"),
        ("a.parquet", "cannot read"),
        ("none.jsonl", "cannot read"),
    ):
        with pytest.raises(DatasetError, match=wrong):
            list(_pieces(tmp_path / name, 10))


@pytest.mark.ray
def test_ray_data_reads_everything_in_order(ray_cluster: object, tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in ROWS]
    rows[250] = "[]"
    first = lines(tmp_path / "a.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(ROWS[:20]), tmp_path / "b.parquet")
    found = read_files([first, tmp_path / "b.parquet"], piece_bytes=4000)
    assert len(found.examples) == 319
    assert [example.messages[1].content for example in found.examples[:299]] == [
        str(number) for number in range(300) if number != 250
    ]
    assert found.rejected == ("a.jsonl, line 251: a row must be an object, not list",)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", "utf-8")
    with pytest.raises(DatasetError, match="not a single row"):
        read_files([empty])

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.errors import CatalogError
from factory.catalog.objects import ObjectStore, content_hash


def writes(**files: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)

    return fill


def test_what_is_put_is_found_with_its_meta(store: ObjectStore) -> None:
    item = store.put("datasets", "helpdesk", writes(a="1", b="22"), {"seed": 7})
    assert store.find("datasets", "helpdesk") == item
    assert (item.path / "b").read_text() == "22"
    assert item.path == store.root / "datasets" / "helpdesk" / item.hash[:16]
    assert (item.meta, item.size_bytes) == ({"seed": 7}, 3)
    store.verify(item)


def test_what_fill_returns_joins_the_meta(store: ObjectStore) -> None:
    def fill(folder: Path) -> dict[str, int]:
        (folder / "a").write_text("1")
        return {"rows": 1}

    assert store.put("datasets", "x", fill, {"seed": 7}).meta == {"seed": 7, "rows": 1}


def test_the_same_bytes_are_stored_once_under_the_same_hash(store: ObjectStore) -> None:
    first = store.put("datasets", "x", writes(a="1"), {"seed": 1})
    again = store.put("datasets", "x", writes(a="1"), {"seed": 2})
    assert again.hash == first.hash
    assert again.meta == {"seed": 2}
    assert store.list("datasets") == [again]


def test_a_file_name_counts_as_much_as_its_bytes(store: ObjectStore) -> None:
    one = store.put("datasets", "x", writes(a="1"))
    other = store.put("datasets", "x", writes(b="1"))
    assert one.hash != other.hash


def test_find_gives_what_was_put_last(tmp_path: Path) -> None:
    ticks = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in itertools.count())
    store = ObjectStore(tmp_path, clock=lambda: next(ticks))
    first = store.put("datasets", "x", writes(a="1"))
    second = store.put("datasets", "x", writes(a="2"))
    assert store.find("datasets", "x") == second
    assert store.put("datasets", "x", writes(a="1")).hash == first.hash
    found = store.find("datasets", "x")
    assert found is not None
    assert found.hash == first.hash


def test_get_takes_a_whole_hash_or_its_beginning(store: ObjectStore) -> None:
    item = store.put("datasets", "x", writes(a="1"))
    assert store.get("datasets", "x", item.hash) == item
    assert store.get("datasets", "x", item.hash[:16]) == item
    with pytest.raises(CatalogError, match="no datasets/x with hash"):
        store.get("datasets", "x", "0" * 64)


def test_a_fill_that_fails_leaves_nothing(store: ObjectStore) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("1")
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError, match="network"):
        store.put("models", "x", fill)
    assert store.find("models", "x") is None
    assert [path for path in store.root.rglob("*") if path.name == "a"] == []


def test_nothing_visible_after_a_kill_and_leftovers_go_with_the_next_put(
    store: ObjectStore,
) -> None:
    code = """
import sys, time
from pathlib import Path
from factory.catalog.objects import ObjectStore
def fill(folder):
    (folder / "half").write_text("half")
    print("half", flush=True)
    time.sleep(60)
ObjectStore(Path(sys.argv[1])).put("models", "x", fill)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        store.put("models", "other", writes(a="1"))
        assert list(store.root.rglob("half")), "the folder of a living put is left alone"
        child.send_signal(signal.SIGKILL)
    assert store.find("models", "x") is None
    store.put("models", "y", writes(a="1"))
    assert list(store.root.rglob("half")) == []


def test_an_object_that_lost_a_file_is_not_found_and_can_be_put_again(store: ObjectStore) -> None:
    item = store.put("models", "x", writes(a="1", b="2"))
    (item.path / "a").unlink()
    assert store.find("models", "x") is None
    assert store.put("models", "x", writes(a="1", b="2")).hash == item.hash
    assert store.find("models", "x") is not None


def test_verify_names_the_changed_file(store: ObjectStore) -> None:
    item = store.put("models", "x", writes(a="1", b="2"))
    (item.path / "b").write_text("3")
    with pytest.raises(CatalogError, match=r"/b' is not what was stored"):
        store.verify(item)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "/etc", "x" * 200, "ü"])
def test_unsafe_names_are_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(CatalogError, match="cannot name an object"):
        store.put("models", name, writes(a="1"))
    with pytest.raises(CatalogError, match="cannot name an object"):
        store.find(name, "x")


def test_empty_folders_and_links_are_refused(store: ObjectStore) -> None:
    with pytest.raises(CatalogError, match="without any file"):
        store.put("models", "x", writes())
    with pytest.raises(CatalogError, match="'link' is a link"):
        store.put("models", "x", lambda folder: os.symlink("/etc/passwd", folder / "link"))
    assert store.list("models") == []


def test_two_processes_putting_the_same_content_agree(store: ObjectStore) -> None:
    code = """
import sys
from pathlib import Path
from factory.catalog.objects import ObjectStore
store = ObjectStore(Path(sys.argv[1]))
for _ in range(20):
    store.put("models", "x", lambda folder: (folder / "a").write_text("1") and None)
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(store.root)]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert len(store.list("models")) == 1


@settings(max_examples=50)
@given(st.dictionaries(st.text("abc/", min_size=1), st.text("0123456789abcdef", min_size=1)))
def test_the_hash_depends_on_names_and_digests_alone(files: dict[str, str]) -> None:
    entries = {path: {"sha256": digest, "bytes": 1} for path, digest in files.items()}
    shuffled = dict(reversed(entries.items()))
    assert content_hash(entries) == content_hash(shuffled)
    if entries:
        fewer = dict(itertools.islice(entries.items(), len(entries) - 1))
        assert content_hash(fewer) != content_hash(entries)

"""Stores on a real LanceDB: teams are apart, changes are atomic and seen by everybody."""

from __future__ import annotations

import numpy as np
import pytest

from factory.vectors import File, Store, UnknownStore, VectorsError, VectorStores
from factory.vectors.store import new_store_id


def made(name="handbook", created_at=1):
    return Store(
        store_id=new_store_id(),
        name=name,
        endpoint="search",
        embedder="1",
        dimensions=4,
        created_at=created_at,
        metadata={"lang": "en"},
    )


def file(file_id="a.md", **attributes):
    return File(file_id=file_id, filename=file_id, attributes=attributes, created_at=7)


def axis(*places):
    return np.eye(4, dtype=np.float32)[list(places)]


async def test_a_file_is_found_by_its_nearest_chunk_and_replaced_whole(tmp_path):
    stores, store = VectorStores(str(tmp_path)), made()
    await stores.create("support", store)
    assert await stores.get("support", store.store_id) == store
    assert await stores.search("support", store.store_id, axis(0)[0], 5) == []
    await stores.put("support", store.store_id, file(lang="en"), ["x", "y", "z"], axis(0, 1, 2))
    await stores.put("support", store.store_id, file("b.md"), ["w"], axis(3))
    near = (await stores.search("support", store.store_id, axis(1)[0], 2))[0]
    assert (near.file.file_id, near.seq, near.text) == ("a.md", 1, "y")
    assert near.score == pytest.approx(1)
    assert near.file.attributes == {"lang": "en"}
    update = await stores.put("support", store.store_id, file(), ["new"], axis(0))
    assert update.removed == 2
    found = await stores.files("support", store.store_id)
    assert [(one.file_id, one.chunks, one.characters) for one in found] == [
        ("a.md", 1, 3),
        ("b.md", 1, 1),
    ]
    only = await stores.search("support", store.store_id, axis(0)[0], 5, among=["b.md"])
    assert [one.text for one in only] == ["w"]
    assert await stores.search("support", store.store_id, axis(0)[0], 5, among=[]) == []


async def test_every_process_sees_a_change_at_once(tmp_path):
    here, there, store = VectorStores(str(tmp_path)), VectorStores(str(tmp_path)), made()
    await here.create("support", store)
    versions = [await there.version("support", store.store_id)]
    await here.put("support", store.store_id, file(), ["x"], axis(0))
    versions.append(await there.version("support", store.store_id))
    assert len(await there.search("support", store.store_id, axis(0)[0], 5)) == 1
    assert (await here.remove("support", store.store_id, "a.md")).removed == 1
    versions.append(await there.version("support", store.store_id))
    assert versions == sorted(set(versions))
    assert await there.search("support", store.store_id, axis(0)[0], 5) == []
    await here.delete("support", store.store_id)
    for asked in (
        there.search("support", store.store_id, axis(0)[0], 5),
        there.version("support", store.store_id),
        there.delete("support", store.store_id),
        here.get("support", store.store_id),
    ):
        with pytest.raises(UnknownStore):
            await asked


async def test_a_store_is_its_teams(tmp_path):
    stores, first, second = VectorStores(str(tmp_path)), made(), made("other", created_at=2)
    await stores.create("support", first)
    await stores.create("support", second)
    assert [one.name for one in await stores.all("support")] == ["handbook", "other"]
    assert await stores.all("research") == []
    with pytest.raises(UnknownStore):
        await stores.get("research", first.store_id)


@pytest.mark.parametrize("name", ["", "../support", "vs_1", "vs_" + "g" * 32])
async def test_what_is_no_id_never_becomes_a_path(tmp_path, name):
    with pytest.raises(UnknownStore):
        await VectorStores(str(tmp_path)).get("support", name)


async def test_vectors_of_another_shape_and_a_broken_folder_are_told(tmp_path):
    stores, store = VectorStores(str(tmp_path)), made()
    await stores.create("support", store)
    with pytest.raises(VectorsError, match="4 dimensions"):
        await stores.put("support", store.store_id, file(), ["x"], np.ones((1, 3), np.float32))
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(VectorsError, match="cannot be made"):
        await VectorStores(str(tmp_path / "full")).create("support", made())


async def test_many_changes_leave_few_fragments(tmp_path):
    stores, store = VectorStores(str(tmp_path)), made()
    await stores.create("support", store)
    for number in range(25):
        await stores.put("support", store.store_id, file(f"{number}.md"), ["x"], axis(0))
    assert len(await stores.files("support", store.store_id)) == 25
    fragments = list((tmp_path / "support" / f"{store.store_id}.lance" / "data").iterdir())
    assert len(await stores.search("support", store.store_id, axis(0)[0], 50)) == 25
    assert fragments

"""Quota of a store, to the byte, and the order of eviction."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.blobs.conftest import noise
from tests.blobs.versions import CHUNK, Version, set_age

from hedgerow.blobs.errors import DiskFull, StoreFull
from hedgerow.blobs.store.store import MANIFEST_BYTES, BlobStore

SIZE = 10 * CHUNK
NEEDED = SIZE + 10
"""Bytes that a version of ten chunks takes while it is fetched, with one mark per chunk."""


def version(number: int, chunks: int = 10) -> Version:
    return Version(f"{number}.0.0", noise(chunks * CHUNK, number))


def installed(store: BlobStore) -> set[str]:
    return {each.digest for each in store.installed()}


def set_free_space(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Set the free disk space."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_the_quota_is_exact(tmp_path: Path) -> None:
    exact = BlobStore(tmp_path / "exact", NEEDED + MANIFEST_BYTES)
    less = BlobStore(tmp_path / "less", NEEDED + MANIFEST_BYTES - 1)

    assert version(1).fetch(exact) == 10
    with pytest.raises(StoreFull) as caught:
        version(1).fetch(less)
    assert str(caught.value) == (
        f"{NEEDED + MANIFEST_BYTES:,} more bytes do not fit in the model store: 0 of {NEEDED + MANIFEST_BYTES - 1:,} are used by "
        "serving versions, versions kept for a rollback, and the current fetch"
    )
    assert caught.value.remedy == ("Raise the quota (`fleet: {store_max_bytes: …}`), or build a smaller variant.")


def test_eviction_starts_when_one_byte_is_missing(tmp_path: Path) -> None:
    first, second = version(1), version(2)
    used = SIZE + len(first.manifest)
    for name, missing in (("exact", 0), ("less", 1)):
        store = BlobStore(tmp_path / name, used + NEEDED + MANIFEST_BYTES - missing)
        first.install(store)
        assert store.used_bytes == used

        second.fetch(store)
        assert store.evicted == missing
        assert installed(store) == ({first.digest} if not missing else set())


def test_nothing_is_evicted_if_protected_and_new_content_cannot_fit(tmp_path: Path) -> None:
    serving, other, new = version(1), version(2, chunks=20), version(3)
    retained = SIZE + len(serving.manifest)
    for name, missing in (("exact", 0), ("less", 1)):
        # Room for both bundles, so that one has to be evicted for the new one.
        store = BlobStore(tmp_path / name, 10 * SIZE)
        serving.install(store)
        other.install(store)
        store.protect({serving.digest})
        store._quota.max_bytes = retained + NEEDED + MANIFEST_BYTES - missing

        if missing:
            with pytest.raises(
                StoreFull, match=f"do not fit in the model store: {retained:,} of {store.max_bytes:,} are used"
            ):
                new.fetch(store)
            assert (store.evicted, installed(store)) == (0, {serving.digest, other.digest})
        else:
            new.fetch(store)
            assert (store.evicted, installed(store)) == (1, {serving.digest})


def test_a_partial_file_counts_at_its_full_size(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, NEEDED + MANIFEST_BYTES)
    new = version(1)
    new.fetch(store, 3)

    assert store.used_bytes == NEEDED
    assert new.fetch(store) == 7, "it needs no more space than it already has"
    assert store.evicted == 0


def test_a_fetch_does_not_evict_its_own_files(tmp_path: Path) -> None:
    """Beside it nothing else matches, and it does not make room for itself."""
    both = Version("1.0.0", noise(10 * CHUNK, 1), noise(10 * CHUNK, 2))
    store = BlobStore(tmp_path, 10 * SIZE)
    store.missing(both.files[:1])
    store._quota.max_bytes = 2 * NEEDED + MANIFEST_BYTES - 1

    with pytest.raises(StoreFull, match=f"do not fit in the model store: {SIZE:,} of"):
        store.missing(both.files)
    assert store.evicted == 0


def test_unfinished_files_are_evicted_in_order_of_age(tmp_path: Path) -> None:
    bundle, unfinished, new = version(1), version(2), version(3)
    for name, age, evicted in (("older", 0, unfinished), ("younger", 5, bundle)):
        store = BlobStore(tmp_path / name, 2 * NEEDED + SIZE + MANIFEST_BYTES)
        bundle.install(store)
        set_age(store, bundle)
        unfinished.fetch(store, 3)
        (part,) = store._parts.unfinished()
        os.utime(part, (1e9 + age - 1, 1e9 + age - 1))

        new.fetch(store)
        assert store.evicted == 1
        assert (installed(store) == set()) == (evicted is bundle)
        assert part.exists() == (evicted is bundle)


def test_bundles_are_evicted_in_order_of_last_use_until_there_is_room(tmp_path: Path) -> None:
    versions = [version(number) for number in range(1, 5)]
    store = BlobStore(tmp_path, 10 * SIZE)
    for each in versions:
        each.install(store)
    set_age(store, versions[2], versions[0], versions[3], versions[1])
    store._quota.max_bytes = 4 * (SIZE + len(versions[0].manifest)) + MANIFEST_BYTES

    version(9, chunks=12).fetch(store)

    assert store.evicted == 2
    assert installed(store) == {versions[3].digest, versions[1].digest}
    assert store.used_bytes == 2 * (SIZE + len(versions[0].manifest)) + 12 * CHUNK + 12


def test_a_file_shared_by_bundles_counts_once(tmp_path: Path) -> None:
    shared = noise(SIZE, 1)
    one, other = Version("1.0.0", shared), Version("2.0.0", shared)
    store = BlobStore(tmp_path, 10 * SIZE)
    one.install(store)
    other.install(store)

    assert store.used_bytes == SIZE + len(one.manifest) + len(other.manifest)


def test_the_disk_check_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = version(1)
    set_free_space(monkeypatch, SIZE + MANIFEST_BYTES)
    assert len(BlobStore(tmp_path / "exact", 10 * SIZE).missing(new.files)) == 10

    set_free_space(monkeypatch, SIZE + MANIFEST_BYTES - 1)
    with pytest.raises(DiskFull) as caught:
        BlobStore(tmp_path / "less", 10 * SIZE).missing(new.files)
    assert str(caught.value) == (
        f"{SIZE + MANIFEST_BYTES:,} more bytes are needed, but only {SIZE + MANIFEST_BYTES - 1:,} are free on the disk of "
        f"{tmp_path / 'less'}"
    )
    assert caught.value.remedy == (
        "Free some disk space, or lower the quota (`fleet: {store_max_bytes: …}`) so that it fits on the disk."
    )


def test_written_blocks_reduce_the_space_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = version(1)
    store = BlobStore(tmp_path, 10 * SIZE)
    new.fetch(store, 4)
    (part,) = store._parts.unfinished()
    written = min(SIZE, part.stat().st_blocks * 512)

    set_free_space(monkeypatch, SIZE - written + MANIFEST_BYTES)
    assert len(store.missing(new.files)) == 6
    set_free_space(monkeypatch, SIZE - written + MANIFEST_BYTES - 1)
    with pytest.raises(DiskFull):
        store.missing(new.files)


def test_a_file_with_more_blocks_than_bytes_offsets_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 10 kB takes three blocks of 4 kB."""
    new = version(1)
    store = BlobStore(tmp_path, 10 * SIZE)
    new.fetch(store)

    set_free_space(monkeypatch, MANIFEST_BYTES)
    assert store.missing(new.files) == []
    set_free_space(monkeypatch, MANIFEST_BYTES - 1)
    with pytest.raises(DiskFull):
        store.missing(new.files)

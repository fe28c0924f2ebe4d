"""The model store on a real disk: eviction, protection, sharing, and repair after torn writes."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.blobs.conftest import noise
from tests.blobs.versions import CHUNK, Version, set_age
from tests.disks import mounted_disk
from tests.examples import examples

from hedgerow.blobs.errors import ContentDamaged, ContentMissing, DiskFull, StoreFull
from hedgerow.blobs.store.store import MANIFEST_BYTES, BlobStore


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_installed_bundles_survive_a_restart(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(5000, 1), noise(3000, 2))
    version.install(BlobStore(tmp_path, 1 << 20))

    store = BlobStore(tmp_path, 1 << 20)

    assert version.is_intact_in(store)
    assert all(store.chunk(digest) == piece for digest, piece in version.chunks.items())


def test_the_least_recently_used_bundle_is_evicted_first(tmp_path: Path) -> None:
    first, second, third = (Version(f"{number}.0.0", noise(10_000, number)) for number in (1, 2, 3))
    store = BlobStore(tmp_path, 24_000 + MANIFEST_BYTES)
    first.install(store)
    second.install(store)
    set_age(store, second, first)

    third.install(store)

    assert {each.digest for each in store.installed()} == {first.digest, third.digest}
    assert store.used_bytes <= store.max_bytes


def test_protected_bundles_stay_and_nothing_is_evicted_in_vain(tmp_path: Path) -> None:
    """A version that is too large is refused before anything is evicted."""
    serving, previous, other = (Version(f"{number}.0.0", noise(10_000, number)) for number in (1, 2, 3))
    store = BlobStore(tmp_path, 34_000 + MANIFEST_BYTES)
    for each in (serving, previous, other):
        each.install(store)
    store.protect({serving.digest, previous.digest})
    set_age(store, previous, serving, other)

    with pytest.raises(StoreFull):
        Version("4.0.0", noise(30_000, 4)).install(store)
    assert store.evicted == 0

    reopened = BlobStore(tmp_path, 34_000 + MANIFEST_BYTES)
    Version("5.0.0", noise(10_000, 5)).install(reopened)
    assert serving.is_intact_in(reopened)
    assert previous.is_intact_in(reopened)
    assert not other.is_intact_in(reopened)


def test_protection_is_on_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written aside, synced and renamed, and the rename is synced, as observed on every fsync."""
    version = Version("1.0.0", noise(2000, 1))
    store = BlobStore(tmp_path, 1 << 20)
    version.install(store)
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(number: int) -> None:
        fsync(number)
        synced.append((str(Path(f"/proc/self/fd/{number}").readlink()), (tmp_path / "protected.json").exists()))

    monkeypatch.setattr(os, "fsync", record)
    store.protect({version.digest})

    assert synced == [(str(tmp_path / "protected.json.new"), False), (str(tmp_path), True)]


def test_versions_share_equal_chunks(tmp_path: Path) -> None:
    """Only new chunks are fetched, and an equal file is stored once."""
    shared, old = noise(4 * CHUNK, 1), noise(6 * CHUNK, 2)
    new = old[: 2 * CHUNK] + noise(CHUNK, 3) + old[3 * CHUNK :]
    first, second = Version("1.0.0", shared, old), Version("2.0.0", shared, new)
    store = BlobStore(tmp_path, 1 << 20)
    first.install(store)
    before = store.used_bytes

    assert second.fetch(store) == 1
    second.install(store)

    assert second.is_intact_in(store)
    assert store.used_bytes == before + len(new) + len(second.manifest)


def test_bundles_sharing_chunks_with_the_fetch_are_evicted_last(tmp_path: Path) -> None:
    """Their chunks would have to cross the WAN again, even if other bundles were used more recently."""
    old = noise(8 * CHUNK, 1)
    first, other = Version("1.0.0", old), Version("1.0.1", noise(8 * CHUNK, 2))
    store = BlobStore(tmp_path, 25 * CHUNK + MANIFEST_BYTES)
    first.install(store)
    other.install(store)
    set_age(store, first, other)

    assert Version("2.0.0", old[: 7 * CHUNK] + noise(CHUNK, 3)).fetch(store) == 1
    assert [each.digest for each in store.installed()] == [first.digest]


def test_a_file_evicted_for_its_own_bundle_is_fetched_again(tmp_path: Path) -> None:
    """One of the version's files is in a bundle that is evicted for it."""
    shared = noise(4 * CHUNK, 1)
    store = BlobStore(tmp_path, 15 * CHUNK + MANIFEST_BYTES)
    Version("1.0.0", shared, noise(6 * CHUNK, 2)).install(store)
    second = Version("2.0.0", shared, noise(9 * CHUNK, 3))

    assert second.fetch(store) == 13
    second.install(store)

    assert second.is_intact_in(store)
    assert store.used_bytes <= store.max_bytes


def test_a_damaged_file_is_repaired_in_every_bundle(tmp_path: Path) -> None:
    """Only damaged chunks are fetched again."""
    shared = noise(6 * CHUNK, 1)
    versions = [Version(f"{number}.0.0", shared, noise(CHUNK, 10 + number)) for number in range(3)]
    store = BlobStore(tmp_path, 1 << 20)
    folders = [version.install(store) for version in versions]
    with (folders[0] / "model-0.onnx").open("r+b") as file:
        file.seek(3 * CHUNK)
        file.write(bytes(10))

    with pytest.raises(ContentDamaged):
        store.install(versions[0].manifest, versions[0].files)
    assert versions[0].fetch(store) == 1
    versions[0].install(store)

    assert all(version.is_intact_in(store) for version in versions)


def test_a_chunk_that_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(3 * CHUNK, 1))
    store = BlobStore(tmp_path, 1 << 20)
    (first, *_) = store.missing(version.files)

    with pytest.raises(ContentDamaged):
        store.put(first.digest, bytes(first.size))

    assert not store.has(first.digest)
    assert version.fetch(store) == 3


def test_a_damaged_chunk_is_never_returned(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(3 * CHUNK, 1))
    store = BlobStore(tmp_path, 1 << 20)
    folder = version.install(store)
    (folder / "model-0.onnx").write_bytes(bytes(3 * CHUNK))

    for chunk in version.files[0].chunks:
        with pytest.raises(ContentMissing):
            store.chunk(chunk.digest)
    assert store.damaged == 3


@settings(max_examples=examples(30))
@given(st.data())
def test_a_write_torn_at_any_byte_is_repaired_by_a_fetch(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any file of the store is truncated or zeroed from some byte on, as after a power cut; a fetch repairs it."""
    folder = tmp_path_factory.mktemp("store")
    version = Version("1.0.0", noise(5 * CHUNK + 100, 1))
    store = BlobStore(folder, 1 << 20)
    version.fetch(store, data.draw(st.integers(0, 6), "chunks fetched"))
    store.protect({version.digest})

    file = data.draw(st.sampled_from(files_below(folder)), "file")
    size = file.stat().st_size
    at = data.draw(st.integers(0, size), "byte")
    os.truncate(file, at)
    if data.draw(st.booleans(), "zeros"):
        os.truncate(file, size)

    reopened = BlobStore(folder, 1 << 20)
    version.install(reopened)
    assert version.is_intact_in(reopened)


def test_a_missing_hint_does_not_cause_chunks_to_be_fetched_again(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(6 * CHUNK, 1))
    version.fetch(BlobStore(tmp_path, 1 << 20), 4)
    for hint in (tmp_path / "parts").glob("*.there"):
        hint.unlink()

    assert version.fetch(BlobStore(tmp_path, 1 << 20)) == 2


@contextmanager
def max_file_size(size: int) -> Iterator[None]:
    """Limit the size of files this process can write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_is_reported_and_stored_chunks_are_kept(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(6 * CHUNK, 1))
    store = BlobStore(tmp_path, 1 << 20)
    version.fetch(store, 3)
    missing = store.missing(version.files)

    with max_file_size(4 * CHUNK):
        store.put(missing[0].digest, version.chunks[missing[0].digest])
        with pytest.raises(DiskFull) as caught:
            store.put(missing[1].digest, version.chunks[missing[1].digest])
    assert "Free some disk space" in caught.value.remedy

    assert version.fetch(BlobStore(tmp_path, 1 << 20)) == 2
    version.install(store)
    assert version.is_intact_in(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 320 kB."""
    with mounted_disk(tmp_path / "small", "320k") as disk:
        yield disk


def fill(path: Path) -> None:
    """Use up the free disk space."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1024)):
            pass


def test_a_disk_that_fills_up_keeps_chunks_and_the_fetch_resumes(small_disk: Path) -> None:
    """Another process uses up the disk, although the quota permits the version."""
    version = Version("1.0.0", noise(100 * CHUNK, 1))
    store = BlobStore(small_disk / "store", 1 << 30)
    version.fetch(store, 20)
    other = small_disk / "other"
    fill(other)

    with pytest.raises(DiskFull):
        version.install(store)
    other.unlink()
    assert version.fetch(store) <= 80
    version.install(store)
    assert version.is_intact_in(store)

    with pytest.raises(DiskFull):
        Version("2.0.0", noise(300 * CHUNK, 2)).fetch(store)
    assert version.is_intact_in(store)


def test_reads_are_consistent_while_versions_change(tmp_path: Path) -> None:
    """A read returns the right bytes or raises `ContentMissing`."""
    versions = [Version(f"{number}.0.0", noise(20 * CHUNK, number), noise(CHUNK, 99)) for number in range(4)]
    chunks = [(digest, piece) for version in versions for digest, piece in version.chunks.items()]
    store = BlobStore(tmp_path, 60 * CHUNK + MANIFEST_BYTES)
    done = threading.Event()
    wrong: list[str] = []
    found = [0]

    def read() -> None:
        while not done.is_set():
            for digest, piece in chunks:
                store.has(digest)
                store.installed()
                try:
                    if store.chunk(digest) != piece:
                        wrong.append(digest)
                    found[0] += 1
                except ContentMissing:
                    pass

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in versions * 3:
        version.install(store)
        assert store.used_bytes <= store.max_bytes
    done.set()
    for reader in readers:
        reader.join()

    assert not wrong
    assert found[0] > 0
    assert store.evicted > 0


def test_reads_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    version = Version("1.0.0", noise(3 * CHUNK, 1))
    store = BlobStore(tmp_path, 1 << 20)
    version.install(store)
    locked, release = threading.Event(), threading.Event()

    def write() -> None:
        with store._lock:
            locked.set()
            release.wait()

    writer = threading.Thread(target=write)
    writer.start()
    locked.wait()
    try:
        assert store.has(version.files[0].chunks[0].digest)
        assert store.chunk(version.files[0].chunks[0].digest)
        assert store.installed()
        assert store.used_bytes > 0
    finally:
        release.set()
        writer.join()


def test_an_invalid_bundle_folder_does_not_keep_the_store_from_opening(tmp_path: Path) -> None:
    good = Version("1.0.0", noise(2000, 1))
    good.install(BlobStore(tmp_path, 1 << 20))
    (tmp_path / "bundles" / "nonsense").mkdir()
    shutil.copytree(tmp_path / "bundles" / good.digest.removeprefix("sha256:"), tmp_path / "bundles" / ("0" * 64))

    store = BlobStore(tmp_path, 1 << 20)

    assert [each.digest for each in store.installed()] == [good.digest]

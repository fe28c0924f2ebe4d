from __future__ import annotations

import os
from pathlib import Path

from hedgerow.backends import cache


def filled(state_dir: Path, digest: str, size: int, age: int) -> Path:
    folder = cache.folder(state_dir, digest)
    folder.mkdir(parents=True)
    (folder / "model.blob").write_bytes(bytes(size))
    os.utime(folder, (10_000 - age, 10_000 - age))
    return folder


def test_the_least_recently_used_folder_is_evicted_first(tmp_path: Path) -> None:
    old, middle, new = (filled(tmp_path, f"sha256:{age}", 100, age) for age in (30, 20, 10))

    cache.mark_used(new, max_bytes=250)

    assert (old.exists(), middle.exists(), new.exists()) == (False, True, True)


def test_a_used_folder_becomes_the_newest(tmp_path: Path) -> None:
    old, new = (filled(tmp_path, f"sha256:{age}", 100, age) for age in (30, 10))

    cache.mark_used(old, max_bytes=150)

    assert (old.exists(), new.exists()) == (True, False)


def test_the_folder_in_use_is_kept_even_if_it_alone_exceeds_the_quota(tmp_path: Path) -> None:
    folder = filled(tmp_path, "sha256:big", 1000, 0)

    cache.mark_used(folder, max_bytes=10)

    assert folder.exists()


def test_a_backend_that_caches_nothing_creates_no_folder(tmp_path: Path) -> None:
    cache.mark_used(cache.folder(tmp_path, "sha256:none"))

    assert not (tmp_path / "compiled").exists()

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


def test_the_longest_unused_folder_goes_first(tmp_path: Path) -> None:
    old, middle, new = (filled(tmp_path, f"sha256:{age}", 100, age) for age in (30, 20, 10))

    cache.used(new, max_bytes=250)

    assert (old.exists(), middle.exists(), new.exists()) == (False, True, True)


def test_using_a_folder_makes_it_the_newest(tmp_path: Path) -> None:
    old, new = (filled(tmp_path, f"sha256:{age}", 100, age) for age in (30, 10))

    cache.used(old, max_bytes=150)

    assert (old.exists(), new.exists()) == (True, False)


def test_the_folder_in_use_stays_even_if_it_alone_is_over_the_quota(tmp_path: Path) -> None:
    folder = filled(tmp_path, "sha256:big", 1000, 0)

    cache.used(folder, max_bytes=10)

    assert folder.exists()


def test_a_backend_that_keeps_nothing_makes_no_folder(tmp_path: Path) -> None:
    cache.used(cache.folder(tmp_path, "sha256:none"))

    assert not (tmp_path / "compiled").exists()

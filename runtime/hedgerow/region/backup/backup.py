"""Makes a backup of a region while its service runs: the store in one snapshot, and the repository of models, without keys."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from hedgerow import __version__, disk
from hedgerow.region.backup.manifest import (
    MANIFEST,
    REPOSITORY,
    STORE,
    Advance,
    BackupError,
    BackupFile,
    BackupManifest,
    copy_file,
    digest,
)
from hedgerow.region.config import RegionConfig, on_postgres
from hedgerow.region.store.database.database import applied_migrations
from hedgerow.region.store.database.open import open_database

_MUTABLE: Final = Path("metadata") / "timestamp.json"
"""The only file of a repository that changes; it names all others, which are there before it does."""


def make_backup(config: RegionConfig, target: Path, advance: Advance) -> BackupManifest:
    """Make a backup in a new folder; it appears there when it is complete.

    Args:
        config: the region.
        target: the folder; must not exist.
        advance: called with the bytes done since the last call.
    Raises:
        BackupError: it exists, or cannot be written.
        RegionStoreError: the store cannot be read.
    """
    if target.exists():
        raise BackupError(f"{target} exists already", remedy="Give the name of a new folder.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(mode=0o700, parents=True)
        manifest = _fill(config, partial, advance)
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        _sync(partial)
        partial.rename(target)
        disk.sync(target.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise BackupError(
            f"{target} cannot be written: {error.strerror or error}", remedy="Check the disk's space and permissions."
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _fill(config: RegionConfig, folder: Path, advance: Advance) -> BackupManifest:
    files: dict[str, BackupFile] = {}
    (folder / STORE).mkdir(mode=0o700)
    at = time.time()
    with closing(open_database(config.store.url, write=False)) as database:
        database.dump(folder / STORE, advance)
        migrations = sorted(applied_migrations(database))
    for path in sorted((folder / STORE).iterdir()):
        files[f"{STORE}/{path.name}"] = digest(path, advance)
    if config.models.repository is not None and config.models.repository.exists():
        _copy_repository(config, folder, files, advance)
    return BackupManifest(
        region=config.region.name,
        at=at,
        version=__version__,
        dialect="postgres" if on_postgres(config.store.url) else "sqlite",
        migrations=migrations,
        files=files,
    )


def _copy_repository(config: RegionConfig, folder: Path, files: dict[str, BackupFile], advance: Advance) -> None:
    repository = config.models.repository
    assert repository is not None  # noqa: S101 - by the caller
    names = list(_contents(repository))
    # What this names was there before: so nothing of it is missing, although the service signs a new one meanwhile.
    for name in sorted(names, key=lambda name: name != _MUTABLE):
        source = repository / name
        if config.models.online_key is not None and source.samefile(config.models.online_key):
            continue
        try:
            files[f"{REPOSITORY}/{name.as_posix()}"] = copy_file(source, folder / REPOSITORY / name, advance)
        except FileNotFoundError:  # a temporary file of a change, or a chunk that was deleted meanwhile
            (folder / REPOSITORY / name).unlink(missing_ok=True)


def _contents(folder: Path) -> Iterator[Path]:
    """Yield the paths of a folder's files, relative to it; links, sockets and private keys are left out."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root) / name
            if stat.S_ISREG(path.lstat().st_mode) and path.suffix not in (".pem", ".key", ".lock"):
                yield path.relative_to(folder)


def _sync(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        disk.sync(Path(root))

"""Puts a backup back, while no service uses the store.

The store is replaced in one step: by renaming the file, or in one transaction. What must never be given twice is raised above what may
have been given between the backup and now: generations of desired documents, ids of rollouts, requests and entries of the audit log, and
the fence of the lease. The repository is only added to: nodes refuse metadata that is older than what they have seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hedgerow import disk
from hedgerow.region.backup.doors import LaterDecisions, ShutDoors, read_decisions, shut
from hedgerow.region.backup.manifest import (
    REPOSITORY,
    STORE,
    Advance,
    BackupError,
    BackupManifest,
    copy_file,
    read_manifest,
    verify_files,
)
from hedgerow.region.config import RegionConfig, on_postgres
from hedgerow.region.store.audit import Actor, save_audit
from hedgerow.region.store.database.database import Database, RegionStoreError, RestoreSteps, known_migrations
from hedgerow.region.store.database.open import restore_database
from hedgerow.wire.ranges import MAX_GENERATION

_TIMESTAMP: Final = f"{REPOSITORY}/metadata/timestamp.json"
_MORE: Final = 10_000
"""How far numbers are raised besides one for each second since the backup."""
_MAX_PER_S: Final = 20_000
"""Most rows that a table gets in a second."""


_EARLIEST: Final = 1.7e9
"""Before there were backups."""
_CLOCKS_APART_S: Final = 86_400.0
_MOST_TERMS: Final = 1 << 53


class GivenNumbers(NamedTuple):
    """The highest generation of a desired document, fence of the lease, number of a restore and position of the collector."""

    generation: int
    fence: int
    counter: int
    position: int


@dataclass(frozen=True, slots=True)
class RestoredBackup:
    """What was put back.

    Attributes:
        counter: number of this restore in the store's life.
        generation_floor: above each generation that may have been given after the backup.
        files_added: files that the repository lacked.
        shut: what was decided after the backup, and stays so.
    """

    manifest: BackupManifest
    counter: int
    generation_floor: int
    files_added: int
    shut: ShutDoors


def restore_backup(
    config: RegionConfig,
    source: Path,
    *,
    who: str,
    replace: bool = False,
    advance: Advance,
) -> RestoredBackup:
    """Restore a backup.

    Args:
        config: the region.
        source: the backup's folder.
        who: for the audit log.
        replace: whether a store that holds something may be replaced.
        advance: called with the bytes done since the last call.
    Raises:
        BackupError: the backup is damaged or does not fit, or the store holds something.
        StoreInUse: a service is running, or another program has the store open.
        RegionStoreError: the store cannot be written.
    """
    manifest = read_manifest(source)
    now = time.time()
    _check_fit(config, manifest, now)
    verify_files(source, manifest, advance)
    given: list[GivenNumbers] = []
    later: list[LaterDecisions] = []
    doors: list[ShutDoors] = []

    def look(database: Database) -> None:
        given.append(_given(database))
        later.append(read_decisions(database))

    def finish(database: Database) -> None:
        doors.append(shut(database, later[0] if later else None, now))
        given.append(_raise_numbers(database, [*given, _given(database)], manifest, now))
        _audit(database, manifest, given[-1], doors[-1], now, who)

    added = 0
    if config.models.repository is not None:
        added = _add_files(source, manifest, config.models.repository, advance)
    steps = RestoreSteps(
        look=look,
        finish=finish,
        advance=advance,
        id_step=_MORE + _MAX_PER_S * _seconds(manifest, now),
        may_replace=lambda database: replace or _has_nothing_else(database, manifest),
        migrations=manifest.migrations,
    )
    restore_database(config.store.url, source / STORE, steps, group=config.store.group_access)
    return RestoredBackup(manifest, given[-1].counter, given[-1].generation, added, doors[-1])


def _check_fit(config: RegionConfig, manifest: BackupManifest, now: float) -> None:
    if not _EARLIEST <= manifest.at <= now + _CLOCKS_APART_S:  # numbers are raised by the time since
        raise BackupError(
            f"The backup says that it was made at {manifest.at:g} (Unix time); it is {now:.0f}",
            remedy="Set this machine's clock. If it is right, do not use the backup: somebody has changed it.",
        )
    if manifest.region != config.region.name:
        raise BackupError(
            f"The backup is of region {manifest.region}, not of {config.region.name}",
            remedy="Give the configuration of that region.",
        )
    dialect = "postgres" if on_postgres(config.store.url) else "sqlite"
    if manifest.dialect != dialect:
        raise BackupError(
            f"The backup is of a store in {manifest.dialect}, not in {dialect}",
            remedy="Set a store of the same kind in the region's configuration.",
        )
    known = known_migrations(dialect)
    if newer := set(manifest.migrations) - known:
        raise BackupError(
            f"The backup was made by a newer version, {manifest.version} (migration {max(newer)})",
            remedy="Upgrade Hedgerow first.",
        )


def _seconds(manifest: BackupManifest, now: float) -> int:
    return max(0, int(now - manifest.at))


def _has_nothing_else(database: Database, manifest: BackupManifest) -> bool:
    """Whether a store is this backup, and no service has led it since: a call that was killed right after it had put it back."""
    led = "SELECT 1 FROM lease_term t JOIN lease l ON l.fence = t.fence"
    newest = "SELECT backup_at FROM restoration ORDER BY counter DESC LIMIT 1"
    return database.rows(newest) == [(manifest.at,)] and not database.rows(led)


def _given(database: Database) -> GivenNumbers:
    """Return the highest numbers that a store has given."""
    generation = max(
        _number(database, "SELECT coalesce(max(generation), 0) FROM desired"),
        _number(database, "SELECT coalesce(max(generation_floor), 0) FROM restoration"),
    )
    counter = _number(database, "SELECT coalesce(max(counter), 0) FROM restoration")
    position = max(
        _number(database, "SELECT coalesce(max(position), 0) FROM collector"),
        _number(database, "SELECT coalesce(max(lost_to), 0) FROM restoration"),
    )
    return GivenNumbers(generation, _number(database, "SELECT fence FROM lease"), counter, position)


def _raise_numbers(database: Database, given: list[GivenNumbers], manifest: BackupManifest, now: float) -> GivenNumbers:
    """Raise what must not be given twice, within the caller's transaction.

    Args:
        database: the restored store.
        given: by the one that it replaces, if there is one; last by the restored one.
    """
    # One a second at most, so that what was given between the backup and now is below, also by a store that is gone.
    step = _MORE + _seconds(manifest, now)
    floor, fence = max(one.generation for one in given) + step, max(one.fence for one in given) + step
    counter = max(one.counter for one in given) + 1
    if floor > MAX_GENERATION or max(fence, counter) > _MOST_TERMS:
        raise BackupError(
            f"Nothing could be rolled out after it: by the backup, or the store, generation {floor - step:,}, term {fence - step:,} and "
            f"restore {counter - 1:,} were given; with {step:,} added, at most {MAX_GENERATION:,} and {_MOST_TERMS:,} are possible",
            remedy="Do not use the backup: somebody has changed it. Use an earlier one.",
        )
    lost_from = given[-1].position
    lost_to = max(one.position for one in given) + _MORE + _MAX_PER_S * _seconds(manifest, now)
    raised = GivenNumbers(floor, fence, counter, lost_to)
    row = (raised.counter, now, manifest.at, floor, lost_from, lost_to)
    database.run(
        "INSERT INTO restoration (counter, at, backup_at, generation_floor, lost_from, lost_to) VALUES (?, ?, ?, ?, ?, ?)",
        row,
    )
    database.run("UPDATE collector SET position = ?", (lost_to,))
    database.run("UPDATE lease SET fence = ?, renewals = 0, locked = 0, instance = ''", (raised.fence,))
    database.run("DELETE FROM standby")
    return raised


def _audit(
    database: Database, manifest: BackupManifest, raised: GivenNumbers, doors: ShutDoors, now: float, who: str
) -> None:
    detail = {
        "backup_at": manifest.at,
        "counter": raised.counter,
        "generation_floor": raised.generation,
    } | doors.detail()
    save_audit(database, Actor(who, "a backup was put back"), "store-restored", now, **detail)


def _number(database: Database, query: str) -> int:
    try:
        rows = database.rows(query)
    except RegionStoreError:  # a table that an earlier version did not have
        return 0
    if len(rows) != 1 or not isinstance(rows[0][0], int):
        raise BackupError(
            f"The backup, or the store, has no number where it must have one ({query})", remedy="Use an earlier backup."
        )
    return rows[0][0]


def _add_files(source: Path, manifest: BackupManifest, repository: Path, advance: Advance) -> int:
    """Add the files that a repository lacks; the timestamp, which names the others, last. Returns: their number."""
    names = [name for name in manifest.files if name.startswith(f"{REPOSITORY}/")]
    added = 0
    for name in sorted(names, key=lambda name: name == _TIMESTAMP):
        target = repository / Path(name).relative_to(REPOSITORY)
        if target.exists():
            continue
        new = target.with_name(f".{target.name}.restoring")
        copy_file(source / name, new, advance)
        new.rename(target)
        disk.sync(target.parent)
        added += 1
    return added

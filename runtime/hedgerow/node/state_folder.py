"""The node's state folder: created, checked and closed to other users at start, and moved to from where earlier versions had it.

Earlier builds joined a relative path of the configuration twice: `hedgerow node run configs/node.yaml` had its outbox in
`configs/configs/.hedgerow`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from hedgerow.bus.identity.client_ids import FILE as TOKEN
from hedgerow.bus.outbox import OutboxError
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.disk import close_folder, why_unwritable
from hedgerow.errors import ConfigError
from hedgerow.node.link.outbox import FILE

log = structlog.get_logger(__name__)

SEALED: Final = "sealed"
"""File that says that this is an image without an identity: `hedgerow node seal`."""
NEW_IDENTITY: Final = "new-identity.json"
"""File that says that the node is being given a new identity: `hedgerow node new-identity`."""
_IN_USE: Final = "in-use"
_DEEPEST: Final = 8
"""Most folders between the working directory of an earlier build and its configuration."""
_SOME_BYTES: Final = 1 << 20


def prepare(folder: Path, config_folder: Path) -> None:
    """Create the state folder, and move there what an earlier build left elsewhere.

    Args:
        folder: the state folder, absolute.
        config_folder: folder of the node's configuration file.
    Raises: ConfigError: this process cannot write there.
    """
    problem = why_unwritable(folder)
    if problem is None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{error.filename or folder}: {error.strerror}", "Set another folder."
    if problem is not None:
        why, remedy = problem
        raise ConfigError(
            f"Cannot write to the state folder {folder}: {why}",
            remedy=f"{remedy} The setting is `node: {{state_dir: …}}`, or HEDGEROW_NODE__STATE_DIR.",
        )
    _close_to_others(folder)
    for stray in _earlier_folders(folder, config_folder.absolute()):
        _adopt(stray, folder)


def check_identity(folder: Path, *, is_named: bool) -> None:
    """Check that a node may run: no change of its identity is unfinished, and an image has been given a name.

    Args:
        folder: the state folder.
        is_named: whether the configuration names the node.
    Raises: ConfigError: it may not.
    """
    if (folder / NEW_IDENTITY).exists():
        raise ConfigError(
            f"The change of this node's identity is not finished: {folder / NEW_IDENTITY}",
            remedy="Run `hedgerow node new-identity` again: it goes on where it stopped.",
        )
    if not (folder / SEALED).exists():
        return
    if not is_named:
        raise ConfigError(
            f"This is a sealed image, and the node has no name: {folder / SEALED}",
            remedy="Name it (`node: {region, site, name}`, or HEDGEROW_NODE__NAME), and give it a certificate of its own.",
        )
    (folder / SEALED).unlink(missing_ok=True)


@contextmanager
def held(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold a state folder: as a node that runs, or `alone`, to change its identity.

    Raises: ConfigError: a node runs there, or its identity is being changed.
    """
    try:
        opened = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if alone:
            raise ConfigError(
                f"Cannot hold {folder}: {error.strerror}", remedy="Run this as the node's user, or as root."
            ) from error
        opened = -1  # root has held it before: that keeps no node from running
    if opened < 0:
        yield
        return
    with os.fdopen(opened) as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"A node runs in {folder}" if alone else f"The identity of the node in {folder} is being changed",
                remedy="Stop the node first." if alone else "Wait until that has ended.",
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def is_new(folder: Path) -> bool:
    """Return whether no earlier run has left its client ids or sessions in a state folder."""
    return not (folder / TOKEN).exists() and not (folder / "sessions").exists()


def _close_to_others(folder: Path) -> None:
    """Let only this user read the state: it has results, frames that crashed a stage, and models."""
    changed, failed = close_folder(folder)
    if changed:
        log.warning(
            "permissions-mended", path=str(folder), files=changed, detail="other users of this machine could read it"
        )
    if failed:
        remedy = f"As root, `chown -R {os.geteuid()} {folder}` and `chmod -R go-rwx {folder}`."
        log.warning("permissions-open", path=str(folder), error="; ".join(failed), remedy=remedy)


def _earlier_folders(folder: Path, config_folder: Path) -> Iterator[Path]:
    if not folder.is_relative_to(config_folder):
        return
    within, parts = folder.relative_to(config_folder), config_folder.parts[1:]
    for count in range(1, min(len(parts), _DEEPEST) + 1):
        stray = config_folder.joinpath(*parts[-count:], within)
        if stray != folder and (stray / FILE).is_file():
            yield stray


def _adopt(stray: Path, folder: Path) -> None:
    """Move all that the state folder lacks; two outboxes stay apart, since their records have numbers of their own."""
    try:
        records = _records_in(stray / FILE)
        if (folder / FILE).exists():
            if records:
                remedy = f"To send them, stop this node and run it once with HEDGEROW_NODE__STATE_DIR={stray}."
                log.warning("outbox-left-behind", path=str(stray / FILE), records=records, remedy=remedy)
            return
        for path in sorted(
            stray.iterdir(), key=lambda path: path.name == FILE
        ):  # last: until then, this can be resumed
            if not (folder / path.name).exists():
                path.rename(folder / path.name)
        log.info("state-moved", source=str(stray), to=str(folder), records=records)
    except (OSError, OutboxError) as error:
        remedy = f"Stop the other node, or move the files of {stray} to {folder} yourself."
        log.warning("state-not-moved", source=str(stray), to=str(folder), error=str(error), remedy=remedy)


def _records_in(path: Path) -> int:
    """Return the number of records and gaps in an outbox, and complete its file: a log beside it is written into it."""
    store = OutboxStore(path, max_bytes=max(path.stat().st_size, _SOME_BYTES))
    try:
        return store.entries
    finally:
        store.close()

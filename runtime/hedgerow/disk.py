"""Atomic, durable file writes: after a power cut a file has its old or its new content, never a mixture. Private files."""

from __future__ import annotations

import itertools
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MOST_CHECKED: Final = 1000
"""Limit on the files that `why_unwritable` looks at."""


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically: write a temporary file, sync, rename, sync the folder. For one writing process.

    Raises: OSError: the file cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f"{path.name}.new")
    write(temporary, content)
    temporary.replace(path)
    sync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file and sync it to disk.

    Raises: OSError: the file cannot be written.
    """
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power cut.

    Raises: OSError: the folder cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path, mode: int = 0o600) -> bool:
    """Create a file that only its owner may use, whatever the umask; take the rights of others from one that exists.

    Args:
        path: of the file.
        mode: 0o660 if its group may use it too.
    Returns: whether others had rights.
    Raises: OSError: it cannot be created.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode))
    return limit_mode(path, mode)


def limit_mode(path: Path, mode: int) -> bool:
    """Take all rights from a file or folder that `mode` does not give. Returns: whether there were any.

    Raises: OSError: it does not exist, or belongs to another user.
    """
    has = path.stat().st_mode & 0o777
    if not has & ~mode:
        return False
    path.chmod(has & mode)
    return True


def close_folder(folder: Path) -> tuple[int, list[str]]:
    """Take the rights of group and others from a folder and what it contains; links are left alone.

    Returns: how many had such rights, and the first few that this process may not change.
    """
    changed, failed = 0, []
    for path in itertools.islice(itertools.chain([folder], _contents(folder, 4)), _MOST_CHECKED):
        try:
            if not path.is_symlink():
                changed += limit_mode(path, 0o700)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
    return changed, failed[:5]


def open_to_others(folder: Path) -> list[Path]:
    """Return what in a folder, or the folder itself, others than its owner can reach and use; at most a few."""
    if not folder.exists() or not folder.stat().st_mode & 0o077:
        return []
    inside = itertools.islice(_contents(folder, 4), _MOST_CHECKED)
    used = (path for path in inside if not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o077)
    return [folder, *itertools.islice(used, 3)]


def why_unwritable(folder: Path) -> tuple[str, str] | None:
    """Return why this process cannot write files in a folder, and what to do; None if it can, or can create the folder.

    Looks at the folder, or its nearest parent that exists, and at what the folder contains, down to two levels.
    """
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        return f"{existing} is not a folder", "Set another folder."
    inside = _contents(folder, 2) if existing == folder else iter(())
    for path in itertools.islice(itertools.chain([existing], inside), _MOST_CHECKED):
        if os.access(path, os.W_OK | (os.X_OK if path.is_dir() else os.R_OK)) or path.is_symlink():
            continue
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return (
                f"{path} is on a read-only file system",
                "Set a folder on a disk that can be written, such as a volume.",
            )
        owner, user = _user_name(path.stat().st_uid), _user_name(os.geteuid())
        give = f"chown -R {user} {path}" if path.is_relative_to(folder) else f"install -d -o {user} {folder}"
        why = f"{path} belongs to user {owner} with mode {path.stat().st_mode & 0o777:o}, and this is user {user}"
        return why, f"As root, `{give}`, or set another folder."
    return None


def _contents(folder: Path, levels: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if levels > 1 and path.is_dir() and not path.is_symlink() and os.access(path, os.R_OK | os.X_OK):
            yield from _contents(path, levels - 1)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

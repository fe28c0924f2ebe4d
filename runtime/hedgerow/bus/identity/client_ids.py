"""Client ids that nobody can guess: a readable name, and a random token that is kept with the state.

A broker ends the session of whoever held a client id before, with all that waits there, and most let every client choose its id.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hedgerow import disk

log = structlog.get_logger(__name__)

FILE: Final = "client-token"
_TOKEN_BYTES: Final = 16
_TOKEN: Final = re.compile(rf"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
_unstored: Final[dict[Path, str]] = {}


def client_id(name: object, token: str, *link: str) -> str:
    """Return the client id of a link: hedgerow/NAME/LINK/TOKEN; operators recognise it in the broker's log."""
    return "/".join(("hedgerow", str(name), *link, token))


def former_client_id(name: object, *link: str) -> str:
    """Return the client id that a link had before ids had tokens."""
    return "/".join(("hedgerow", str(name), *link))


def client_token(folder: Path) -> str:
    """Return the token that a folder keeps; make it at first use.

    If it cannot be stored, it lasts as long as this process, and so do its sessions.
    """
    path = folder / FILE
    with suppress(OSError):
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if _TOKEN.fullmatch(text):
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return text
        log.warning(
            "client-token-replaced", path=str(path), remedy="It was damaged. What waits at the broker expires there."
        )
    token = _unstored.get(folder) or secrets.token_hex(_TOKEN_BYTES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, token)
        _unstored.pop(folder, None)
    except OSError as error:
        if folder not in _unstored:
            remedy = "Until it can be stored, messages that wait at the broker while this process is stopped are lost."
            log.error("client-token-not-stored", path=str(path), error=str(error), remedy=remedy)
        _unstored[folder] = token
    return token


def new_client_token(folder: Path) -> None:
    """Give a folder another token. Raises: OSError: it cannot be written; the old one stays."""
    _write(folder / FILE, secrets.token_hex(_TOKEN_BYTES))
    _unstored.pop(folder, None)


def _write(path: Path, token: str) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a run that was killed
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w", encoding="ascii") as out:
        out.write(f"{token}\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    disk.sync(path.parent)

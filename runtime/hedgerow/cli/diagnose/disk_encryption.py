"""Finds out whether a folder is on an encrypted disk: what a thief of the machine could read."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

Ask = Callable[[list[str]], str]
"""Runs a command and returns its output; "" if there is no such program, or it fails."""

_REMEDY: Final = "Use LUKS (dm-crypt) for the disk, or fscrypt for the folder; docs/operator/security.md says what a thief could read."


def _run(command: list[str]) -> str:
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - a path from which
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def check(folder: Path, ask: Ask = _run) -> tuple[Literal["ok", "warning"], str, str]:
    """Look for the encryption of a folder's disk. What cannot be found out is a warning.

    Args:
        folder: exists.
        ask: runs findmnt, lsblk and lsattr.
    Returns: the state, what was found, and what to do about it.
    """
    attributes = ask(["lsattr", "-d", str(folder)]).split(" ")[0]
    if "E" in attributes:
        return "ok", f"{folder} is encrypted by fscrypt", ""
    try:
        mount = json.loads(ask(["findmnt", "--json", "--output", "SOURCE,FSTYPE", "--target", str(folder)]))[
            "filesystems"
        ][0]
        source, kind = str(mount["source"]).partition("[")[0], str(mount["fstype"])  # of btrfs: /dev/x[/subvolume]
    except (ValueError, KeyError, IndexError, TypeError):
        return "warning", f"whether {folder} is on an encrypted disk is not known: findmnt does not say", _REMEDY
    try:
        devices = json.loads(ask(["lsblk", "--json", "--inverse", "--output", "NAME,TYPE", source]))["blockdevices"]
        layers = list(_types(devices))
    except (ValueError, KeyError, TypeError):
        layers = []
    if not layers:
        where = f"{folder} is on {kind} ({source})"
        return "warning", f"whether {where} is encrypted is not known: lsblk does not know it", _REMEDY
    if "crypt" in layers:
        return "ok", f"{folder} is on an encrypted disk ({source}, dm-crypt)", ""
    return "warning", f"{folder} is on {source} ({kind}), which is not encrypted", _REMEDY


def _types(devices: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the types of devices and of what they are made of."""
    for device in devices:
        yield str(device["type"])
        yield from _types(device.get("children") or [])

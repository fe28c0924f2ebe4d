"""What doctor says about the encryption of the state folder's disk: what it does not know is a warning, never ok."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hedgerow.cli.diagnose.disk_encryption import check

MOUNT = {"filesystems": [{"source": "/dev/mapper/root", "fstype": "ext4"}]}
BTRFS = {"filesystems": [{"source": "/dev/mapper/root[/state]", "fstype": "btrfs"}]}
CRYPT = {"name": "root", "type": "crypt", "children": [{"name": "sda2", "type": "part"}]}
LVM = {"name": "vg-root", "type": "lvm", "children": [CRYPT]}
PLAIN = {"name": "sda2", "type": "part", "children": [{"name": "sda", "type": "disk"}]}


@pytest.mark.parametrize(
    ("lsattr", "findmnt", "lsblk", "state", "said"),
    [
        ("-----------------", MOUNT, {"blockdevices": [CRYPT]}, "ok", "dm-crypt"),
        ("-----------------", MOUNT, {"blockdevices": [LVM]}, "ok", "dm-crypt"),
        ("", BTRFS, {"blockdevices": [CRYPT]}, "ok", "dm-crypt"),
        ("-----------E-----", None, None, "ok", "fscrypt"),
        ("-----------------", MOUNT, {"blockdevices": [PLAIN]}, "warning", "not encrypted"),
        ("", MOUNT, None, "warning", "not known"),
        ("", MOUNT, {"blockdevices": []}, "warning", "not known"),
        ("", MOUNT, {"other": 1}, "warning", "not known"),
        ("", None, {"blockdevices": [CRYPT]}, "warning", "not known"),
        ("", {"filesystems": []}, None, "warning", "not known"),
    ],
)
def test_encryption_is_found_or_not_known(
    tmp_path: Path, lsattr: str, findmnt: Any, lsblk: Any, state: str, said: str
) -> None:
    asked: dict[str, list[str]] = {}
    answers = {"lsattr": f"{lsattr} {tmp_path / 'E'}" if lsattr else "", "findmnt": findmnt, "lsblk": lsblk}

    def ask(command: list[str]) -> str:
        asked[command[0]] = command
        answer = answers[command[0]]
        return answer if isinstance(answer, str) else json.dumps(answer) if answer is not None else ""

    verdict, detail, remedy = check(tmp_path, ask)

    assert verdict == state
    assert said in detail
    assert bool(remedy) == (state == "warning")
    if findmnt is BTRFS:
        assert asked["lsblk"][-1] == "/dev/mapper/root"


def test_the_disk_of_a_real_folder_is_looked_up(tmp_path: Path) -> None:
    state, detail, remedy = check(tmp_path)

    assert str(tmp_path) in detail
    assert bool(remedy) == (state == "warning")

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hedgerow.backends.cores import cores

OWN = len(os.sched_getaffinity(0))


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_without_control_groups_the_affinity_mask_applies(tmp_path: Path) -> None:
    assert cores(tmp_path) == OWN


def test_a_containers_quota_is_respected(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"})
    assert cores(root) == 1


def test_a_fraction_of_a_core_is_rounded_down_but_never_to_none(tmp_path: Path) -> None:
    assert cores(machine(tmp_path / "a", "0::/\n", {"sys/fs/cgroup/cpu.max": "190000 100000\n"})) == 1
    assert cores(machine(tmp_path / "b", "0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"})) == 1


def test_the_tightest_quota_of_the_ancestors_applies(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/edge.slice/node.service\n",
        {
            "sys/fs/cgroup/edge.slice/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/edge.slice/node.service/cpu.max": "max 100000\n",
        },
    )
    assert cores(root) == 1


def test_version_1_groups_are_read_too(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "11:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n",
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",  # in a container, the group is the mount's root
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cores(root) == 1


@pytest.mark.parametrize("text", ["max 100000\n", "garbage\n", "100000 0\n"])
def test_without_a_readable_quota_the_affinity_mask_applies(tmp_path: Path, text: str) -> None:
    assert cores(machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": text})) == OWN


def test_a_quota_above_the_affinity_mask_adds_no_cores(tmp_path: Path) -> None:
    assert cores(machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "99900000 100000\n"})) == OWN

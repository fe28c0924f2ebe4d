"""Free memory within the machine, the process's control groups and its own limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow.models.session.memory import free_bytes
from hedgerow.testing import processes

MIB = 1 << 20


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n"}


def test_without_limits_the_machines_available_memory_is_free(tmp_path: Path) -> None:
    assert free_bytes(write_files(tmp_path, MACHINE)) == 8 * MIB


def test_the_tightest_limit_of_the_ancestors_applies_and_its_caches_count_as_free(tmp_path: Path) -> None:
    group = {"memory.stat": f"anon 1\ninactive_file {MIB}\n", "memory.current": str(4 * MIB)}
    files = {f"sys/fs/cgroup/site/{name}": text for name, text in group.items()}
    root = write_files(
        tmp_path,
        MACHINE
        | files
        | {
            "proc/self/cgroup": "0::/site/node\n",
            "sys/fs/cgroup/site/memory.max": str(6 * MIB),
            "sys/fs/cgroup/site/node/memory.max": "max",
        },
    )
    assert free_bytes(root) == 3 * MIB


def test_groups_of_version_1_are_read_too(tmp_path: Path) -> None:
    """As with Docker on gateways with an older kernel."""
    root = write_files(
        tmp_path,
        MACHINE
        | {
            "proc/self/cgroup": "4:memory:/docker/ab\n1:cpu:/docker/ab\n",
            "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": str(6 * MIB),
            "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes": str(5 * MIB),
            "sys/fs/cgroup/memory/docker/ab/memory.stat": f"total_inactive_file {MIB}\n",
        },
    )
    assert free_bytes(root) == 2 * MIB


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        MACHINE
        | {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": str(MIB),
            "sys/fs/cgroup/memory.current": str(2 * MIB),
            "sys/fs/cgroup/memory.stat": "",
        },
    )
    assert free_bytes(root) == 0


@pytest.mark.parametrize("limit", ["AS", "DATA"])
def test_a_limit_of_the_process_applies(limit: str) -> None:
    """A real limit, as set by `ulimit`."""
    code = f"""
import resource
from hedgerow.models.session.memory import free_bytes
before = free_bytes()
resource.setrlimit(resource.RLIMIT_{limit}, (1 << 30, 1 << 30))
left = free_bytes()
block = bytearray(256 << 20)
print(left < (1 << 30), left - free_bytes() >= 256 << 20)
"""
    done = processes.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_free_memory_is_unknown_if_the_system_does_not_tell(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None

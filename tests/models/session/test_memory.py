"""Memory that is left: the machine's, that of every control group above the process, and the process's own limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hedgerow.models.session.memory import free_bytes
from hedgerow.testing import processes

MIB = 1 << 20


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n"}


def test_what_the_machine_has_available_is_what_there_is(tmp_path: Path) -> None:
    assert free_bytes(lay(tmp_path, MACHINE)) == 8 * MIB


def test_the_tightest_group_on_the_way_up_counts_and_its_caches_are_free(tmp_path: Path) -> None:
    group = {"memory.stat": f"anon 1\ninactive_file {MIB}\n", "memory.current": str(4 * MIB)}
    files = {f"sys/fs/cgroup/site/{name}": text for name, text in group.items()}
    root = lay(
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


def test_groups_of_version_1_count_too(tmp_path: Path) -> None:
    """Docker on many a gateway with an older kernel."""
    root = lay(
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


def test_more_taken_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    root = lay(
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
def test_a_limit_on_the_process_counts(limit: str) -> None:
    """A real one, as `ulimit` sets it."""
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


def test_a_system_that_tells_nothing_is_nobody_to_believe(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None

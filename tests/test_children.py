"""The root `conftest.py` fails tests that leak child processes, and kills these."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from hedgerow.testing import processes

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """\
import subprocess
import pytest

def start():
    return subprocess.Popen(["sleep", "SECONDS"])

def stop(process):
    process.kill()
    process.wait()

@pytest.fixture
def own():
    process = start()
    yield
    stop(process)

@pytest.fixture(scope="module")
def shared():
    process = [start()]
    yield process
    stop(process[0])

@pytest.fixture(scope="module")
def leaking():
    start()

def test_none():
    pass

def test_its_own(own):
    pass

def test_shared_after_its_own(own, request):
    request.getfixturevalue("shared")

def test_shared_restarted(shared):
    stop(shared[0])
    shared[0] = start()

def test_leaks_one():
    start()

def test_fails_and_leaks_one():
    start()
    raise ValueError

def test_leaks_a_grandchild():
    subprocess.run(["sh", "-c", "sleep SECONDS & true"], check=True)

def test_last_user_of_a_leaking_fixture(leaking, own):
    pass
"""


def test_leaked_processes_are_killed_and_fail_the_test(tmp_path: Path) -> None:
    """Also if the test fails, and for grandchildren. Processes of shared fixtures may run until the end of the run."""
    seconds = f"3600.{uuid.uuid4().int % 10**9:09}"  # identifies the processes of this test
    (tmp_path / "test_sample.py").write_text(TESTS.replace("SECONDS", seconds))
    ours = CONFTEST.read_text()
    assert "LEFT_PATIENCE_S = 60.0\n" in ours
    (tmp_path / "conftest.py").write_text(ours.replace("LEFT_PATIENCE_S = 60.0\n", "LEFT_PATIENCE_S = 0.2\n"))
    done = processes.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfE",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            "test_sample.py",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert set(re.findall(r"^(FAILED|ERROR) test_sample.py::(\w+)", done.stdout, re.MULTILINE)) == {
        ("ERROR", "test_leaks_one"),
        ("FAILED", "test_fails_and_leaks_one"),
        ("ERROR", "test_fails_and_leaks_one"),
        ("ERROR", "test_leaks_a_grandchild"),
        ("ERROR", "test_last_user_of_a_leaking_fixture"),
    }
    assert done.stdout.count(f": sleep {seconds}\n") >= 4, "leaked processes are listed"
    assert not [each for each in psutil.process_iter(["cmdline"]) if seconds in (each.info["cmdline"] or ())]

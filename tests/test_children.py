"""No test leaves a process behind: `conftest.py` sees to it."""

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

def begin():
    return subprocess.Popen(["sleep", "SECONDS"])

def end(process):
    process.kill()
    process.wait()

@pytest.fixture
def own():
    process = begin()
    yield
    end(process)

@pytest.fixture(scope="module")
def shared():
    process = [begin()]
    yield process
    end(process[0])

@pytest.fixture(scope="module")
def left():
    begin()

def test_none():
    pass

def test_its_own(own):
    pass

def test_shared_after_its_own(own, request):
    request.getfixturevalue("shared")

def test_shared_begun_anew(shared):
    end(shared[0])
    shared[0] = begin()

def test_leaves_one():
    begin()

def test_fails_and_leaves_one():
    begin()
    raise ValueError

def test_leaves_what_a_child_started():
    subprocess.run(["sh", "-c", "sleep SECONDS & true"], check=True)

def test_last_of_those_that_share_what_is_left(left, own):
    pass
"""


def test_what_is_left_behind_is_an_error_of_the_test_and_killed(tmp_path: Path) -> None:
    """By one that fails as well, and by what a test has started. What is shared may stay, but for the end of the run."""
    seconds = f"3600.{uuid.uuid4().int % 10**9:09}"  # by which those of this test are known
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
        ("ERROR", "test_leaves_one"),
        ("FAILED", "test_fails_and_leaves_one"),
        ("ERROR", "test_fails_and_leaves_one"),
        ("ERROR", "test_leaves_what_a_child_started"),
        ("ERROR", "test_last_of_those_that_share_what_is_left"),
    }
    assert done.stdout.count(f": sleep {seconds}\n") >= 4, "it says what was left"
    assert not [each for each in psutil.process_iter(["cmdline"]) if seconds in (each.info["cmdline"] or ())]

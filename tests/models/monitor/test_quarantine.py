"""Quarantine: trials recorded on disk, and their evaluation after the process has ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.testing import processes
from hedgerow.wire.fleet import Quarantined

MakeVersion = Callable[..., ModelVersion]

CRASH = """
import ctypes, sys
from pathlib import Path
from types import SimpleNamespace
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.wire.fleet import ModelRef
trials = QuarantineLog(Path(sys.argv[1]), int(sys.argv[2]))
trials.start_trial(SimpleNamespace(ref=ModelRef.model_validate_json(sys.argv[3])), "golden")
ctypes.string_at(0)
"""


@pytest.fixture
def candidate(make_version: MakeVersion) -> ModelVersion:
    return make_version("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")


def crash(folder: Path, max_crashes: int, candidate: ModelVersion) -> None:
    """Run a process that dies of a segmentation fault during a trial."""
    ref = candidate.ref.model_dump_json()
    done = processes.run(
        [sys.executable, "-c", CRASH, str(folder), str(max_crashes), ref], check=False, capture_output=True
    )
    assert done.returncode == -11, done.stderr


def interrupt(folder: Path, candidate: ModelVersion, max_crashes: int = 1) -> None:
    """Leave a trial unfinished, without a crash report."""
    QuarantineLog(folder, max_crashes).start_trial(candidate, "switch")


def quarantined(folder: Path, max_crashes: int = 1) -> list[tuple[str, str]]:
    return [(each.code, each.reason) for each in QuarantineLog(folder, max_crashes).quarantined()]


def test_a_version_that_crashes_the_process_is_quarantined_at_the_next_start(
    tmp_path: Path, candidate: ModelVersion
) -> None:
    folder = tmp_path / "trials"
    crash(folder, 1, candidate)
    trials = QuarantineLog(folder)

    (held,) = trials.newly_quarantined
    assert (held.code, held.digest) == ("crashed", candidate.ref.digest)
    assert "crashed in step `golden`" in held.reason
    assert "Segmentation fault" in held.reason
    assert trials.find(candidate.ref.digest) == held
    assert QuarantineLog(folder).newly_quarantined == [], "reported once"
    assert QuarantineLog(folder).quarantined() == [held], "and still quarantined"


def test_a_version_is_quarantined_after_max_crashes(tmp_path: Path, candidate: ModelVersion) -> None:
    folder = tmp_path / "trials"
    crash(folder, 2, candidate)
    assert quarantined(folder, 2) == []

    crash(folder, 2, candidate)
    assert [code for code, _ in quarantined(folder, 2)] == ["crashed"]


@pytest.mark.parametrize(("max_crashes", "tolerated"), [(1, 2), (2, 5)])
def test_three_interruptions_count_as_a_crash(
    tmp_path: Path, candidate: ModelVersion, max_crashes: int, tolerated: int
) -> None:
    """One power cut during a trial is bad luck; if it happens repeatedly, it is the model."""
    folder = tmp_path / "trials"
    for _ in range(tolerated):
        interrupt(folder, candidate, max_crashes)
        assert quarantined(folder, max_crashes) == []
    interrupt(folder, candidate, max_crashes)

    ((code, reason),) = quarantined(folder, max_crashes)
    assert code == "interrupted"
    assert f"ended {tolerated + 1} times" in reason


@pytest.mark.parametrize("passed", [True, False])
def test_interruptions_are_forgotten_if_a_version_is_kept_but_not_if_it_is_rolled_back(
    tmp_path: Path, candidate: ModelVersion, passed: bool
) -> None:
    folder = tmp_path / "trials"
    for _ in range(2):
        interrupt(folder, candidate)
    trials = QuarantineLog(folder)
    trials.start_trial(candidate, "probation")
    trials.end_trial(candidate, passed=passed)
    interrupt(folder, candidate)

    assert bool(quarantined(folder)) is not passed


def test_ending_a_trial_that_never_started_forgets_nothing(tmp_path: Path, candidate: ModelVersion) -> None:
    """As when a version is refused before it runs, for lack of memory."""
    folder = tmp_path / "trials"
    for _ in range(2):
        interrupt(folder, candidate)
    QuarantineLog(folder).end_trial(candidate, passed=False)
    interrupt(folder, candidate)

    assert [code for code, _ in quarantined(folder)] == ["interrupted"]


def crash_workers(trials: QuarantineLog, candidate: ModelVersion) -> Quarantined | None:
    trials.start_trial(candidate, "switch")
    return trials.end_trial(candidate, passed=False, crashed="workers that run it crashed twice")


def test_crashes_of_workers_count_like_those_of_the_node(tmp_path: Path, candidate: ModelVersion) -> None:
    trials = QuarantineLog(tmp_path / "trials", max_crashes=2)

    assert crash_workers(trials, candidate) is None
    held = crash_workers(trials, candidate)

    assert held is not None
    assert quarantined(tmp_path / "trials") == [("crashed", "workers that run it crashed twice")]
    assert trials.find(candidate.ref.digest) == held


def test_a_released_version_may_be_tried_again(tmp_path: Path, candidate: ModelVersion) -> None:
    folder = tmp_path / "trials"
    crash_workers(QuarantineLog(folder), candidate)
    QuarantineLog(folder).release(candidate.ref.digest)

    assert quarantined(folder) == []
    interrupt(folder, candidate)
    assert quarantined(folder) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"trials": {"x": 1}}'])
def test_an_unreadable_file_is_renamed_and_the_node_starts(
    tmp_path: Path, candidate: ModelVersion, content: bytes
) -> None:
    folder = tmp_path / "trials"
    crash_workers(QuarantineLog(folder), candidate)
    (file,) = [path for path in folder.iterdir() if path.suffix == ".json"]
    file.write_bytes(content)

    assert quarantined(folder) == []
    assert (folder / f"{file.name}.unreadable").read_bytes() == content

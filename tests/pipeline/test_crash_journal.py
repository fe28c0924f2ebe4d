"""The crash journal: what a process leaves behind when it dies, and what the next one does with it."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.config import NodeConfig
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline import crash_journal
from hedgerow.pipeline.built_pipeline import Completed
from hedgerow.pipeline.crash_journal import MOST_FRAMES, CrashJournal, frame_key
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.lanes.journaled import run_journaled
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.testing import processes

DIGEST = "0123456789ab"


def message(payload: str, *, qos: int = 1, packet_id: int = 1, **properties: Any) -> Message:
    pairs: list[Any] = [(Property.EXPIRY, properties["expiry_s"])] if "expiry_s" in properties else []
    pairs += [(Property.USER, ("id", properties["id"]))] if "id" in properties else []
    raw = encode_properties(pairs) if pairs else b""
    return Message("a/1", payload.encode(), qos << 1, packet_id, time.monotonic(), raw)


def die_in_lane(folder: Path, *keys: bytes, lanes: int = 1, frames: int | None = None, pipeline: str = "p") -> None:
    """Leave a folder as a process does that dies with these frames in each of its lanes, in the stage `blur`."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = CrashJournal(folder)
    for _ in range(lanes):
        record = journal.open_lane(pipeline)
        record.begin(pipeline, DIGEST, ["decode", "blur"], frames or len(keys), keys)
        record.progress.enter(1, 1)


class Counting(LocalPipeline):
    """A pipeline that records the lists it runs."""

    def __init__(self, journal: CrashJournal) -> None:
        config = NodeConfig.model_validate(
            {"pipelines": {"p": {"subscribe": "a/#", "stages": ["parse"], "content_type": "application/json"}}}
        )
        super().__init__(config, "p", Path.cwd(), ModelPool(cores=1), 1, lambda *_: None)
        self.journal = journal
        self.lists: list[list[bytes]] = []

    def run(self, deliveries: Sequence[Delivery], lane: int) -> Completed:
        self.lists.append([bytes(each.message.payload) for each in deliveries])
        return super().run(deliveries, lane)


def run(journal: CrashJournal, *messages: Message) -> tuple[list[list[bytes]], list[str]]:
    """Run one list; return the lists that the stages got, and the reasons of dead letters, in order."""
    built = Counting(journal)
    deliveries = [Delivery(each, "a/1", number, None) for number, each in enumerate(messages)]
    completed = run_journaled(built, deliveries, 0, journal, journal.open_lane("p"))
    assert [each.delivery for each in completed.settlements] == deliveries, "in order"
    return built.lists, [each.reason for each in completed.settlements]


def test_frames_run_in_one_list_while_nothing_has_crashed(tmp_path: Path) -> None:
    assert run(CrashJournal(tmp_path), message("1"), message("2")) == ([[b"1", b"2"]], ["", ""])
    assert CrashJournal(tmp_path).found == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_record_outlives_its_process_however_that_dies(tmp_path: Path, number: signal.Signals) -> None:
    lines = [
        "import os, pathlib, resource, sys, tests_journal as tests",
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
        "tests.die_in_lane(pathlib.Path(sys.argv[1]), tests.frame_key(tests.message('1')))",
        "os.kill(os.getpid(), int(sys.argv[2]))",
    ]
    (tmp_path / "tests_journal.py").write_text(Path(__file__).read_text())
    script = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "journal"), str(int(number))]
    ended = processes.run(script, cwd=tmp_path, capture_output=True)
    journal = CrashJournal(tmp_path / "journal")

    assert ended.returncode == -number, ended.stderr
    assert journal.found == [{"pipeline": "p", "stage": "blur", "frames": 1}]
    assert journal.suspect(frame_key(message("1"))) is not None


def test_after_a_crash_each_frame_runs_alone_and_then_together_again(tmp_path: Path) -> None:
    die_in_lane(tmp_path, frame_key(message("1")), frame_key(message("2")))
    journal = CrashJournal(tmp_path)

    assert journal.found == [{"pipeline": "p", "stage": "blur", "frames": 2}]
    assert run(journal, message("1"), message("2"), message("3"))[0] == [[b"1"], [b"2"], [b"3"]]
    assert not journal.has_suspects
    assert run(journal, message("4"), message("5"))[0] == [[b"4", b"5"]]
    assert not CrashJournal(tmp_path).has_suspects


def test_only_suspects_run_alone(tmp_path: Path) -> None:
    die_in_lane(tmp_path, frame_key(message("3")), frame_key(message("9")))
    found = run(CrashJournal(tmp_path), *map(message, "12345"))[0]

    assert found == [[b"1", b"2"], [b"3"], [b"4", b"5"]]


def test_a_frame_is_not_run_after_two_crashes_and_the_others_are(tmp_path: Path) -> None:
    """Its companions of the first crash are innocent, since it was alone in the second."""
    die_in_lane(tmp_path, frame_key(message("1")), frame_key(message("2")))
    die_in_lane(tmp_path, frame_key(message("2")))
    journal = CrashJournal(tmp_path)

    assert run(journal, message("1"), message("2"), message("3")) == ([[b"1"], [b"3"]], ["", "node-crashed", ""])
    isolated = journal.isolated("p", DIGEST)
    assert isolated is not None
    assert isolated.why_isolated() == "stage blur ended the node twice with the same frame"
    assert journal.isolated("p", "another") is None, "another configuration is tried anew"
    assert journal.isolated("q", DIGEST) is None
    assert run(journal, message("2"))[0] == [[b"2"]], "a like frame is another one"


def test_the_same_frame_in_two_lanes_counts_one_crash(tmp_path: Path) -> None:
    """Two buttons that publish the same."""
    die_in_lane(tmp_path, frame_key(message("true")), frame_key(message("true")), lanes=2)

    assert run(CrashJournal(tmp_path), message("true"))[1] == [""]


@pytest.mark.parametrize("crashes", [2, 3])
def test_a_pipeline_that_keeps_ending_the_node_with_other_frames_is_isolated(tmp_path: Path, crashes: int) -> None:
    """QoS 0 frames have no key. The clock tells the crashes apart."""
    for _ in range(crashes):
        die_in_lane(tmp_path, frames=1)
        CrashJournal(tmp_path)

    isolated = CrashJournal(tmp_path).isolated("p", DIGEST)
    assert (isolated is not None) == (crashes == 3)
    if isolated is not None:  # something else may have killed the node
        assert isolated.why_isolated() == "the node ended 3 times within an hour while stage blur ran"


def test_crashes_of_an_earlier_hour_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for hours_ago in (8, 4, 0):
        die_in_lane(tmp_path, frames=1)
        monkeypatch.setattr(crash_journal.time, "time", lambda at=now - 3600 * hours_ago: at)
        journal = CrashJournal(tmp_path)

    assert journal.isolated("p", DIGEST) is None


def test_a_reboot_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in_lane(tmp_path, frame_key(message("1")))
    monkeypatch.setattr(crash_journal, "_boot", lambda: "another")

    assert CrashJournal(tmp_path).found == []
    assert list(tmp_path.glob("*.lane")) == []


def test_suspects_that_do_not_come_back_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in_lane(tmp_path, frame_key(message("1")))
    monkeypatch.setattr(crash_journal, "_SUSPECT_S", -1.0)
    journal = CrashJournal(tmp_path)
    run(journal, message("2"))

    assert not journal.has_suspects


def test_suspects_of_a_pipeline_that_was_removed_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in_lane(tmp_path, frame_key(message("1")), pipeline="removed")
    journal = CrashJournal(tmp_path)
    run(journal, message("2"))
    assert journal.has_suspects

    monkeypatch.setattr(crash_journal, "_LOOP_S", -1.0)
    run(journal, message("2"))
    assert not journal.has_suspects


SAME: dict[str, tuple[Message, Message, bool]] = {
    "another-packet-id": (message("1", packet_id=1), message("1", packet_id=9), True),
    "less-time-to-live": (message("1", expiry_s=60), message("1", expiry_s=7), True),
    "same-id": (message("1", id="x"), message("1", id="x", expiry_s=5), True),
    "another-id": (message("1", id="x"), message("1", id="y"), False),
    "another-payload": (message("1", id="x"), message("2", id="x"), False),
}


@pytest.mark.parametrize(("one", "other", "same"), SAME.values(), ids=SAME)
def test_a_redelivered_frame_has_the_same_key(one: Message, other: Message, same: bool) -> None:
    assert (frame_key(one) == frame_key(other)) is same


def test_the_longest_list_fits_into_a_record(tmp_path: Path) -> None:
    keys = [frame_key(message(str(number))) for number in range(MOST_FRAMES)]
    die_in_lane(tmp_path, *keys)
    journal = CrashJournal(tmp_path)

    assert journal.found[0]["frames"] == MOST_FRAMES
    assert all(journal.suspect(key) for key in keys)


def _remove_record(folder: Path) -> None:
    next(folder.glob("*.lane")).unlink()


def _truncate_record(folder: Path) -> None:
    path = next(folder.glob("*.lane"))
    path.write_bytes(path.read_bytes()[:100])


def _spoil_state(folder: Path) -> None:
    (folder / "crashes.json").write_text("{")


def _spoil_counts(folder: Path) -> None:
    path = next(folder.glob("*.lane"))
    path.write_bytes(b"\xff" * 4096 + path.read_bytes()[4096:])


@pytest.mark.parametrize("harm", [_remove_record, _truncate_record, _spoil_state, _spoil_counts])
def test_a_damaged_journal_does_not_prevent_the_start(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    die_in_lane(tmp_path, frame_key(message("1")))
    harm(tmp_path)

    assert run(CrashJournal(tmp_path), message("5"))[1] == [""]


def _left(folder: Path) -> Path:
    die_in_lane(folder, frame_key(message("1")))
    return folder


def test_a_second_process_with_the_same_folder_leaves_the_journal_alone(tmp_path: Path) -> None:
    """The first one's lists are in progress, not crashed."""
    shutil.copytree(_left(tmp_path / "a"), tmp_path / "b", ignore=shutil.ignore_patterns("lock"))
    holder = CrashJournal(tmp_path / "held")
    record = holder.open_lane("p")
    record.begin("p", DIGEST, ["blur"], 1, [frame_key(message("1"))])
    lines = [
        "import pathlib, sys",
        "from hedgerow.pipeline.crash_journal import CrashJournal",
        "journal = CrashJournal(pathlib.Path(sys.argv[1]))",
        "sys.exit(7 if journal.found or journal.has_suspects else 0)",
    ]
    script = [sys.executable, "-c", "\n".join(lines)]

    assert processes.run([*script, str(tmp_path / "b")]).returncode == 7, "nobody holds this one"
    assert processes.run([*script, str(tmp_path / "held")]).returncode == 0
    assert len(list((tmp_path / "held").glob("*.lane"))) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_journal(tmp_path: Path) -> None:
    (tmp_path / "crashes").write_text("a file")
    journal = CrashJournal(tmp_path / "crashes")

    assert run(journal, message("1"), message("2"))[0] == [[b"1", b"2"]]

"""When a lane's stage counts as hung."""

from __future__ import annotations

import mmap
import os

from hedgerow.pipeline.chain.progress import SIZE, StageCall, StageProgress
from hedgerow.pipeline.lanes.hang_watch import Hang, HangWatch

CALL = StageCall(stage=1, number=7, done=0, frames=1)


def test_the_same_call_without_a_finished_frame_waits() -> None:
    watch = HangWatch()

    assert [watch.look(CALL, at) for at in (10.0, 10.5, 12.0)] == [0.0, 0.5, 2.0]


def test_progress_of_any_kind_starts_anew() -> None:
    watch = HangWatch()
    for at, call in enumerate(
        [
            CALL,
            CALL._replace(done=1),
            CALL._replace(done=2),
            CALL._replace(number=8),
            CALL._replace(stage=2),
            None,
            None,
        ]
    ):
        assert watch.look(call, float(at)) == 0.0


def test_a_hang_is_reported_once_and_the_next_one_again() -> None:
    watch = HangWatch()
    assert not watch.reported
    watch.look(CALL, 1.0)
    watch.reported = True
    watch.look(CALL, 2.0)
    assert watch.reported
    watch.look(CALL._replace(done=1), 3.0)
    assert not watch.reported


def test_a_stage_has_expired_only_after_its_limit() -> None:
    assert not Hang("blur", 5.0, 5.0).expired
    assert Hang("blur", 5.1, 5.0).expired


def test_progress_shows_the_stage_its_turn_and_the_frames_that_are_done() -> None:
    progress = StageProgress(bytearray(SIZE))
    assert progress.now() is None
    outcomes = progress.enter_each(0)
    first = progress.now()
    outcomes.append(1)

    assert first is not None
    assert progress.now() == first._replace(done=1)
    progress.leave()
    assert progress.now() is None
    progress.enter(0, 5)
    again = progress.now()
    assert again is not None
    assert (again.stage, again.frames, again.done) == (0, 5, 0)
    assert again.number != first.number


def test_another_process_sees_the_stage_and_its_finished_frames_at_once() -> None:
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, SIZE)
    one, other = (StageProgress(memoryview(mmap.mmap(descriptor, SIZE)), shared=True) for _ in range(2))
    os.close(descriptor)
    outcomes = one.enter_each(3)
    seen = other.now()
    outcomes.append("frame")

    assert seen is not None
    assert (seen.stage, seen.done) == (3, 0)
    assert other.now() == seen._replace(done=1)


def test_the_number_of_calls_wraps_around() -> None:
    memory = bytearray(SIZE)
    progress = StageProgress(memory)
    progress._calls = 2**32 - 1
    progress.enter(0, 1)

    assert progress.now() == StageCall(0, 0, 0, 1)

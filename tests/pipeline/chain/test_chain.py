"""The chain: every frame has exactly one outcome, whatever the stages do."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Drop, Frame, FrameError, Stage, StageConfig
from hedgerow.errors import InferenceError
from hedgerow.pipeline.chain.chain import Chain, ChainStep
from hedgerow.pipeline.chain.live import ABSORBED, FrameOutcome


class FunctionStage(Stage[StageConfig]):
    """Applies a function to each frame."""

    def __init__(self, act: Callable[[Frame], Any]) -> None:
        super().__init__(StageConfig())
        self.act = act

    def process(self, frame: Frame) -> Any:
        return self.act(frame)


class ListStage(FunctionStage):
    """Applies a function to each frame of a list, without catching its errors."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Any]:
        return [self.act(frame) for frame in frames]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


def numbered(count: int) -> list[Frame]:
    return [Frame(id=str(number), sequence=number) for number in range(count)]


def twice(frame: Frame) -> list[Frame]:
    return [frame.with_meta(part=0), frame.with_meta(part=1)]


def raising(error: BaseException) -> Callable[[Frame], Any]:
    def act(frame: Frame) -> Any:
        raise error

    return act


def generator(*parts: Any, then: Exception | None = None) -> Callable[[Frame], Any]:
    def act(frame: Frame) -> Iterator[Any]:
        yield from (frame if part == "frame" else part for part in parts)
        if then is not None:
            raise then

    return act


def chain(*acts: Callable[[Frame], Any], kind: type[FunctionStage] = FunctionStage) -> Chain:
    return Chain([ChainStep(f"stage-{number}", kind(act)) for number, act in enumerate(acts)])


def summary(outcome: FrameOutcome) -> str:
    """The outcome as text; fails unless it is exactly one."""
    found = [
        *([f"results {len(outcome.results)}"] if outcome.results else []),
        *([f"dropped {outcome.dropped}"] if outcome.dropped is not None else []),
        *([f"dead {outcome.error.code}"] if outcome.error is not None else []),
    ]
    assert len(found) == 1, outcome
    return found[0]


OUTCOMES: dict[str, tuple[Callable[[Frame], Any], str]] = {
    "a frame": (lambda frame: frame, "results 1"),
    "two frames": (twice, "results 2"),
    "a generator of two": (generator("frame", "frame"), "results 2"),
    "None": (lambda _: None, f"dropped {ABSORBED}"),
    "an empty list": (lambda _: [], f"dropped {ABSORBED}"),
    "an empty generator": (generator(), f"dropped {ABSORBED}"),
    "a drop": (lambda _: Drop("too-dark"), "dropped too-dark"),
    "a frame error": (raising(FrameError("bad", code="too-small")), "dead too-small"),
    "another error": (raising(ValueError("bug")), "dead stage-failed"),
    "an error that cannot be printed": (raising(Unprintable()), "dead stage-failed"),
    "a model's error": (raising(InferenceError("no", remedy="x")), "dead inference-failed"),
    "sys.exit": (lambda _: sys.exit(1), "dead stage-failed"),
    "a number": (lambda _: 5, "dead stage-failed"),
    "a string": (lambda _: "text", "dead stage-failed"),
    "a list with a number in it": (lambda frame: [frame, 5], "dead stage-failed"),
    "a generator that raises in the middle": (generator("frame", then=KeyError("x")), "dead stage-failed"),
    "a generator that raises a frame error": (generator("frame", then=FrameError("x", code="c")), "dead c"),
}


@pytest.mark.parametrize("what", OUTCOMES)
@pytest.mark.parametrize("kind", [FunctionStage, ListStage])
def test_each_frame_has_exactly_one_outcome_and_does_not_affect_its_neighbours(
    what: str, kind: type[FunctionStage]
) -> None:
    """Also if the stage processes whole lists and does not catch errors."""
    act, expected = OUTCOMES[what]
    mixed = chain(lambda frame: act(frame) if frame.sequence == 1 else frame, kind=kind)

    assert [summary(outcome) for outcome in mixed.run(numbered(3)).outcomes] == ["results 1", expected, "results 1"]


@given(
    plan=st.lists(st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=8), min_size=1, max_size=4),
    count=st.integers(0, 12),
)
def test_any_mix_of_outcomes_in_any_number_of_stages_conserves_frames(plan: list[list[str]], count: int) -> None:
    def stage(outcomes: list[str]) -> Callable[[Frame], Any]:
        return lambda frame: OUTCOMES[outcomes[frame.sequence % len(outcomes)]][0](frame)

    run = chain(*(stage(outcomes) for outcomes in plan)).run(numbered(count))

    assert len(run.outcomes) == count
    for number, outcome in enumerate(run.outcomes):
        summary(outcome)
        assert all(frame.sequence == number for frame in outcome.results), "results belong to their frame"


def test_parts_of_a_frame_share_one_outcome() -> None:
    """Dead if one part failed, else results if any part gave one, else dropped."""
    outcomes = {0: lambda frame: frame, 1: lambda _: Drop("blurred"), 2: raising(FrameError("x", code="torn"))}

    def both(first: int, second: int) -> str:
        acts = (outcomes[first], outcomes[second])
        return summary(chain(twice, lambda frame: acts[frame.meta["part"]](frame)).run(numbered(1)).outcomes[0])

    assert both(0, 0) == "results 2"
    assert both(0, 1) == both(1, 0) == "results 1"
    assert both(1, 1) == "dropped blurred"
    assert both(0, 2) == both(2, 1) == both(1, 2) == "dead torn"


def test_a_list_that_fails_is_run_again_one_frame_at_a_time() -> None:
    seen = []

    class Picky(Stage[StageConfig]):
        def process_many(self, frames: Sequence[Frame]) -> Sequence[Frame]:
            seen.append(len(frames))
            if any(frame.sequence == 2 for frame in frames):
                raise ValueError("number 2")
            return frames

    run = Chain([ChainStep("picky", Picky(StageConfig()))]).run(numbered(4))

    assert [summary(outcome) for outcome in run.outcomes] == [
        "results 1",
        "results 1",
        "dead stage-failed",
        "results 1",
    ]
    assert seen == [4, 1, 1, 1, 1]
    assert "number 2" in str(run.outcomes[2].error)


@pytest.mark.parametrize("made", [[], None, 5, [Frame()] * 9])
def test_a_stage_that_returns_the_wrong_number_of_outcomes_fails_its_frames(made: Any) -> None:
    class Miscounting(Stage[StageConfig]):
        def process_many(self, frames: Sequence[Frame]) -> Sequence[Frame]:
            return made  # type: ignore[no-any-return]

    run = Chain([ChainStep("miscounting", Miscounting(StageConfig()))]).run(numbered(3))

    assert [summary(outcome) for outcome in run.outcomes] == ["dead stage-failed"] * 3


def test_a_stage_receives_only_frames_that_the_previous_stage_passed_on() -> None:
    seen: list[int] = []

    def note(frame: Frame) -> Frame:
        seen.append(frame.sequence)
        return frame

    run = chain(lambda frame: frame if frame.sequence % 2 else None, note).run(numbered(6))

    assert seen == [1, 3, 5]
    assert [(name, count) for name, _, count in run.timings] == [("stage-0", 6), ("stage-1", 3)]
    assert run.outcomes[0].stage == "stage-0"


def test_if_several_parts_are_dropped_the_first_gives_stage_and_reason() -> None:
    for last in (lambda _: Drop("dark"), lambda _: None):
        run = chain(
            twice, lambda frame: Drop("blurred") if frame.meta["part"] == 1 else frame, last, lambda frame: frame
        ).run(numbered(1))  # fmt: skip

        assert (run.outcomes[0].dropped, run.outcomes[0].stage) == ("blurred", "stage-1")
    lone = chain(lambda frame: frame, lambda _: Drop("dark")).run(numbered(1))
    assert (lone.outcomes[0].dropped, lone.outcomes[0].stage) == ("dark", "stage-1")


def test_if_several_parts_fail_the_first_gives_stage_and_error() -> None:
    def act(frame: Frame) -> Frame:
        raise FrameError("x", code=f"part-{frame.meta['part']}")

    outcome = chain(twice, act).run(numbered(1)).outcomes[0]

    assert (summary(outcome), outcome.stage) == ("dead part-0", "stage-1")


def test_a_stage_is_timed_per_list(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def act(frame: Frame) -> Frame:
        nonlocal now
        now += 0.5
        return frame

    monkeypatch.setattr("time.perf_counter", lambda: now)

    assert chain(act, lambda frame: frame).run(numbered(3)).timings == [("stage-0", 1.5, 3), ("stage-1", 0.0, 3)]


def test_an_error_names_its_stage_and_what_it_raised() -> None:
    error = chain(raising(ValueError("bug"))).run(numbered(1)).outcomes[0].error

    assert str(error) == "Stage stage-0 raised ValueError: bug"
    assert isinstance(error.__cause__, ValueError)


def step(act: Callable[[Frame], Any]) -> tuple[ChainStep, list[str]]:
    events: list[str] = []
    made = ChainStep("shaky", FunctionStage(act), lambda kind, detail: events.append(f"{kind} {detail['stage']}"))
    return made, events


def test_a_stage_that_keeps_failing_is_skipped_for_a_while_and_then_retried() -> None:
    calls = []
    broken = True

    def act(frame: Frame) -> Frame:
        calls.append(frame)
        if broken:
            raise OSError("device gone")
        return frame

    shaky, events = step(act)
    outcomes = [summary(outcome) for outcome in Chain([shaky]).run(numbered(64)).outcomes]
    assert outcomes == ["dead stage-failed"] * 64
    assert events == ["circuit-open shaky"]
    assert [summary(outcome) for outcome in Chain([shaky]).run(numbered(2)).outcomes] == ["dead circuit-open"] * 2
    assert len(calls) == 64
    assert shaky.circuit.open_until is not None

    broken = False
    shaky.circuit.open_until = 0.0  # the pause is over
    assert [summary(outcome) for outcome in Chain([shaky]).run(numbered(1)).outcomes] == ["results 1"]
    assert events == ["circuit-open shaky", "circuit-closed shaky"]


def test_after_the_pause_one_frame_is_the_trial_and_the_rest_of_its_list_runs_only_if_it_succeeds() -> None:
    calls = []
    broken = True

    def act(frame: Frame) -> Frame:
        calls.append(frame.sequence)
        if broken:
            raise OSError("device gone")
        return frame

    shaky, events = step(act)
    chain = Chain([shaky])
    chain.run(numbered(10))
    shaky.circuit.open_until = 0.0  # the pause is over
    calls.clear()

    outcomes = [summary(outcome) for outcome in chain.run(numbered(64)).outcomes]
    assert outcomes == ["dead stage-failed", *["dead circuit-open"] * 63]
    assert calls == [0]

    broken = False
    shaky.circuit.open_until = 0.0
    calls.clear()
    assert [summary(outcome) for outcome in chain.run(numbered(64)).outcomes] == ["results 1"] * 64
    assert calls == list(range(64)), "each frame runs once"
    assert events == ["circuit-open shaky", "circuit-closed shaky"]


def test_a_failing_list_opens_the_circuit_once_and_a_failed_trial_doubles_the_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shaky, _ = step(raising(OSError("device gone")))
    Chain([shaky]).run(numbered(64))
    assert shaky.circuit.open_until == 101.0

    now = 101.0
    run = Chain([shaky]).run(numbered(3))
    assert shaky.circuit.open_until == 103.0
    assert [summary(outcome) for outcome in run.outcomes] == [
        "dead stage-failed",
        "dead circuit-open",
        "dead circuit-open",
    ]
    assert str(run.outcomes[2].error) == "Stage shaky failed 65 times in a row and is skipped for now"


def test_while_one_lane_runs_the_trial_lists_of_other_lanes_are_refused() -> None:
    started, done = threading.Event(), threading.Event()

    def act(frame: Frame) -> Frame:
        started.set()
        assert done.wait(60)
        return frame

    class Concurrent(FunctionStage):
        concurrent = True

    shaky = ChainStep("shaky", Concurrent(act))
    chain = Chain([shaky])
    shaky.circuit.pause_s = 3600.0
    for _ in range(shaky.circuit.threshold):
        shaky.circuit.failed(-3600.0)  # the pause has been over since 0
    trial = threading.Thread(target=chain.run, args=(numbered(1),))
    trial.start()
    assert started.wait(60)

    assert [summary(outcome) for outcome in chain.run(numbered(2)).outcomes] == ["dead circuit-open"] * 2
    done.set()
    trial.join()
    assert [summary(outcome) for outcome in chain.run(numbered(2)).outcomes] == ["results 1"] * 2


def test_bad_frames_never_open_the_circuit() -> None:
    """A sensor that sends invalid data must not disable the stage for others."""
    shaky, events = step(raising(FrameError("rubbish")))
    for _ in range(20):
        Chain([shaky]).run(numbered(64))

    assert not shaky.circuit.is_open
    assert events == []


def test_a_stage_runs_in_one_thread_at_a_time_unless_it_is_concurrent() -> None:
    def most_inside(concurrent_stage: bool) -> int:
        inside, most, lock = 0, 0, threading.Lock()
        all_in = threading.Barrier(2)

        class Counting(Stage[StageConfig]):
            concurrent = concurrent_stage

            def process(self, frame: Frame) -> Frame:
                nonlocal inside, most
                with lock:
                    inside += 1
                    most = max(most, inside)
                with contextlib.suppress(threading.BrokenBarrierError):
                    all_in.wait(5 if concurrent_stage else 0.2)  # two threads that may be inside together meet here
                with lock:
                    inside -= 1
                return frame

        counting = Chain([ChainStep("counting", Counting(StageConfig()))])
        threads = [threading.Thread(target=counting.run, args=(numbered(1),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most

    assert most_inside(concurrent_stage=False) == 1
    assert most_inside(concurrent_stage=True) == 2


def test_a_stage_that_fails_to_close_does_not_prevent_closing_the_others() -> None:
    closed: list[str] = []
    events: list[str] = []

    class Closing(FunctionStage):
        def close(self) -> None:
            if self.act(Frame()) is None:
                raise RuntimeError("stuck")
            closed.append("closed")

    steps = [
        ChainStep(name, Closing(act), lambda kind, _: events.append(kind))
        for name, act in (("a", lambda f: f), ("b", lambda _: None), ("c", lambda f: f))
    ]
    Chain(steps).close()

    assert closed == ["closed", "closed"]
    assert events == ["stage-close-failed"]

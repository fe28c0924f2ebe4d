"""A chain of stages: every frame has exactly one fate, whatever the stages do."""

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
from hedgerow.pipeline.chain.chain import ABSORBED, Chain, ChainStep, FrameOutcome


class Make(Stage[StageConfig]):
    """Does with a frame what a function says."""

    def __init__(self, act: Callable[[Frame], Any]) -> None:
        super().__init__(StageConfig())
        self.act = act

    def process(self, frame: Frame) -> Any:
        return self.act(frame)


class Together(Make):
    """Gets the whole list; the function makes the outcome of each, and nothing is caught."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Any]:
        return [self.act(frame) for frame in frames]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


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


def chain(*acts: Callable[[Frame], Any], kind: type[Make] = Make) -> Chain:
    return Chain([ChainStep(f"stage-{number}", kind(act)) for number, act in enumerate(acts)])


def say(fate: FrameOutcome) -> str:
    """A fate in a word; fails if it is not exactly one."""
    said = [
        *([f"results {len(fate.results)}"] if fate.results else []),
        *([f"dropped {fate.dropped}"] if fate.dropped is not None else []),
        *([f"dead {fate.error.code}"] if fate.error is not None else []),
    ]
    assert len(said) == 1, fate
    return said[0]


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
    "an error without words": (raising(Unspeakable()), "dead stage-failed"),
    "a model's error": (raising(InferenceError("no", remedy="x")), "dead inference-failed"),
    "sys.exit": (lambda _: sys.exit(1), "dead stage-failed"),
    "a number": (lambda _: 5, "dead stage-failed"),
    "a string": (lambda _: "text", "dead stage-failed"),
    "a list with a number in it": (lambda frame: [frame, 5], "dead stage-failed"),
    "a generator that raises in the middle": (generator("frame", then=KeyError("x")), "dead stage-failed"),
    "a generator that raises a frame error": (generator("frame", then=FrameError("x", code="c")), "dead c"),
}


@pytest.mark.parametrize("what", OUTCOMES)
@pytest.mark.parametrize("kind", [Make, Together])
def test_a_frame_has_one_fate_and_its_neighbours_theirs(what: str, kind: type[Make]) -> None:
    """Also where the stage takes whole lists, and lets its outcomes out as they are."""
    act, expected = OUTCOMES[what]
    mixed = chain(lambda frame: act(frame) if frame.sequence == 1 else frame, kind=kind)

    assert [say(fate) for fate in mixed.run(numbered(3)).outcomes] == ["results 1", expected, "results 1"]


@given(
    plan=st.lists(st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=8), min_size=1, max_size=4),
    count=st.integers(0, 12),
)
def test_any_mix_of_outcomes_in_any_number_of_stages_conserves_frames(plan: list[list[str]], count: int) -> None:
    def stage(outcomes: list[str]) -> Callable[[Frame], Any]:
        return lambda frame: OUTCOMES[outcomes[frame.sequence % len(outcomes)]][0](frame)

    run = chain(*(stage(outcomes) for outcomes in plan)).run(numbered(count))

    assert len(run.outcomes) == count
    for number, fate in enumerate(run.outcomes):
        say(fate)
        assert all(frame.sequence == number for frame in fate.results), "results stay with the frame they came from"


def test_parts_of_a_frame_share_its_fate() -> None:
    """Dead if one part died, else the results there are, else dropped."""
    outcomes = {0: lambda frame: frame, 1: lambda _: Drop("blurred"), 2: raising(FrameError("x", code="torn"))}

    def both(first: int, second: int) -> str:
        acts = (outcomes[first], outcomes[second])
        return say(chain(twice, lambda frame: acts[frame.meta["part"]](frame)).run(numbered(1)).outcomes[0])

    assert both(0, 0) == "results 2"
    assert both(0, 1) == both(1, 0) == "results 1"
    assert both(1, 1) == "dropped blurred"
    assert both(0, 2) == both(2, 1) == both(1, 2) == "dead torn"


def test_a_list_that_fails_as_a_whole_is_given_again_one_at_a_time() -> None:
    seen = []

    class Picky(Stage[StageConfig]):
        def process_many(self, frames: Sequence[Frame]) -> Sequence[Frame]:
            seen.append(len(frames))
            if any(frame.sequence == 2 for frame in frames):
                raise ValueError("number 2")
            return frames

    run = Chain([ChainStep("picky", Picky(StageConfig()))]).run(numbered(4))

    assert [say(fate) for fate in run.outcomes] == ["results 1", "results 1", "dead stage-failed", "results 1"]
    assert seen == [4, 1, 1, 1, 1]
    assert "number 2" in str(run.outcomes[2].error)


@pytest.mark.parametrize("made", [[], None, 5, [Frame()] * 9])
def test_a_list_of_the_wrong_length_kills_its_frames_and_says_so(made: Any) -> None:
    class Miscounting(Stage[StageConfig]):
        def process_many(self, frames: Sequence[Frame]) -> Sequence[Frame]:
            return made  # type: ignore[no-any-return]

    run = Chain([ChainStep("miscounting", Miscounting(StageConfig()))]).run(numbered(3))

    assert [say(fate) for fate in run.outcomes] == ["dead stage-failed"] * 3


def test_a_stage_sees_only_what_the_one_before_let_through() -> None:
    seen: list[int] = []

    def note(frame: Frame) -> Frame:
        seen.append(frame.sequence)
        return frame

    run = chain(lambda frame: frame if frame.sequence % 2 else None, note).run(numbered(6))

    assert seen == [1, 3, 5]
    assert [(name, count) for name, _, count in run.timings] == [("stage-0", 6), ("stage-1", 3)]
    assert run.outcomes[0].stage == "stage-0"


def test_where_several_parts_of_a_frame_are_dropped_the_first_to_go_says_where_and_why() -> None:
    for last in (lambda _: Drop("dark"), lambda _: None):
        run = chain(
            twice, lambda frame: Drop("blurred") if frame.meta["part"] == 1 else frame, last, lambda frame: frame
        ).run(numbered(1))  # fmt: skip

        assert (run.outcomes[0].dropped, run.outcomes[0].stage) == ("blurred", "stage-1")
    lone = chain(lambda frame: frame, lambda _: Drop("dark")).run(numbered(1))
    assert (lone.outcomes[0].dropped, lone.outcomes[0].stage) == ("dark", "stage-1")


def test_where_several_parts_of_a_frame_die_the_first_one_says_where_and_of_what() -> None:
    def act(frame: Frame) -> Frame:
        raise FrameError("x", code=f"part-{frame.meta['part']}")

    fate = chain(twice, act).run(numbered(1)).outcomes[0]

    assert (say(fate), fate.stage) == ("dead part-0", "stage-1")


def test_a_stage_is_timed_by_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
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
    made = ChainStep("shaky", Make(act), lambda kind, detail: events.append(f"{kind} {detail['stage']}"))
    return made, events


def test_a_stage_that_keeps_failing_is_left_alone_for_a_while_and_tried_again() -> None:
    calls = []
    broken = True

    def act(frame: Frame) -> Frame:
        calls.append(frame)
        if broken:
            raise OSError("device gone")
        return frame

    shaky, events = step(act)
    fates = [say(fate) for fate in Chain([shaky]).run(numbered(64)).outcomes]
    assert fates == ["dead stage-failed"] * 64
    assert events == ["circuit-open shaky"]
    assert [say(fate) for fate in Chain([shaky]).run(numbered(2)).outcomes] == ["dead circuit-open"] * 2
    assert len(calls) == 64
    assert shaky.circuit.open_until is not None

    broken = False
    shaky.circuit.open_until = 0.0  # the pause is over
    assert [say(fate) for fate in Chain([shaky]).run(numbered(1)).outcomes] == ["results 1"]
    assert events == ["circuit-open shaky", "circuit-closed shaky"]


def test_after_the_pause_one_frame_is_tried_and_the_rest_of_its_list_hangs_on_it() -> None:
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

    fates = [say(fate) for fate in chain.run(numbered(64)).outcomes]
    assert fates == ["dead stage-failed", *["dead circuit-open"] * 63]
    assert calls == [0]

    broken = False
    shaky.circuit.open_until = 0.0
    calls.clear()
    assert [say(fate) for fate in chain.run(numbered(64)).outcomes] == ["results 1"] * 64
    assert calls == list(range(64)), "each is given once"
    assert events == ["circuit-open shaky", "circuit-closed shaky"]


def test_a_list_that_fails_is_one_failure_to_the_pause_and_a_try_that_fails_doubles_it(
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
    assert [say(fate) for fate in run.outcomes] == ["dead stage-failed", "dead circuit-open", "dead circuit-open"]
    assert str(run.outcomes[2].error) == "Stage shaky failed 65 times in a row and is not called for now"


def test_while_one_lane_tries_the_lists_of_the_others_are_refused() -> None:
    trying, done = threading.Event(), threading.Event()

    def act(frame: Frame) -> Frame:
        trying.set()
        assert done.wait(60)
        return frame

    class Concurrent(Make):
        concurrent = True

    shaky = ChainStep("shaky", Concurrent(act))
    chain = Chain([shaky])
    shaky.circuit.pause_s = 3600.0
    for _ in range(shaky.circuit.threshold):
        shaky.circuit.failed(-3600.0)  # the pause has been over since 0
    trier = threading.Thread(target=chain.run, args=(numbered(1),))
    trier.start()
    assert trying.wait(60)

    assert [say(fate) for fate in chain.run(numbered(2)).outcomes] == ["dead circuit-open"] * 2
    done.set()
    trier.join()
    assert [say(fate) for fate in chain.run(numbered(2)).outcomes] == ["results 1"] * 2


def test_bad_frames_alone_never_open_the_circuit() -> None:
    """A sensor that sends rubbish must not cost the others the stage."""
    shaky, events = step(raising(FrameError("rubbish")))
    for _ in range(20):
        Chain([shaky]).run(numbered(64))

    assert not shaky.circuit.is_open
    assert events == []


def test_a_stage_is_in_one_thread_at_a_time_unless_it_says_it_is_concurrent() -> None:
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
                    all_in.wait(5 if concurrent_stage else 0.2)  # two that may be inside together will meet here
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


def test_a_stage_that_cannot_close_does_not_keep_the_others_from_it() -> None:
    closed: list[str] = []
    events: list[str] = []

    class Closing(Make):
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

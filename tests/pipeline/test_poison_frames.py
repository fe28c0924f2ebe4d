"""Poison frames: whatever a stage raises or returns ends that frame alone; its lane and its stream go on.

Each attempt is (what the stage does with one frame, code of the dead letter, part of its message).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import math
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple, NoReturn
from unittest.mock import Mock

import numpy as np
import pytest
from tests.pipeline.lane_bench import LaneBench

from hedgerow import Drop, Frame, FrameError, HedgerowError, Stage, StageConfig
from hedgerow.bus.message import Message
from hedgerow.pipeline.frame_maker import FrameMaker
from hedgerow.pipeline.lanes.lane import Job

LONG = 10_000_000
OTHER = Frame(b"{}", id="other", stream="in/b", topic="in/b", result={"other": True})
POISON = b"poison"


class PanicException(BaseException):
    """As pyo3 raises it when Rust code panics: not an Exception."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


class UnprintableToo(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - that is the point


class Bare(FrameError):
    """Forgot to call its base class."""

    def __init__(self) -> None:
        pass


class UnprintableFrameError(FrameError):
    def __str__(self) -> str:
        raise KeyError("lost")


class Shifty:
    """Raises when asked for its class."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise PanicException("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        pass


class Unsortable:
    def __lt__(self, other: object) -> bool:
        raise KeyboardInterrupt


class Liar(list[Any]):
    """Claims to have as many items as asked."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter(())


Act = Callable[[Frame], Any]


class Attempt(NamedTuple):
    act: Act
    code: str = "stage-failed"
    message: str = ""


def raising(error: BaseException | type[BaseException]) -> Act:
    def act(frame: Frame) -> NoReturn:
        raise error

    return act


def returning(value: Any) -> Act:
    return lambda _: value


def publishing(result: Any) -> Act:
    return lambda frame: frame.with_result(result)


def own_cause(frame: Frame) -> NoReturn:
    error = ValueError("circular")
    error.__cause__ = ValueError("the other")
    error.__cause__.__cause__ = error
    raise error


def recurse(frame: Frame) -> Any:
    return recurse(frame)


def parts_then(error: BaseException) -> Act:
    def act(frame: Frame) -> Iterator[Frame]:
        yield frame
        raise error

    return act


async def awaitable(frame: Frame) -> Frame:
    return frame


def million(frame: Frame) -> Iterator[Frame]:
    return repeat(frame, 1_000_000)


def moved(frame: Frame) -> Frame:
    frame.stream = "in/b"
    return frame


def spoilt_then_raises(frame: Frame) -> NoReturn:
    frame.payload = None  # type: ignore[assignment]
    frame.id = frame.topic = object()  # type: ignore[assignment]
    raise ValueError("after spoiling the frame")


def coded(code: Any, remedy: Any = "x") -> Act:
    return raising(FrameError("odd code", code=code, remedy=remedy))


def cycle() -> dict[str, Any]:
    result: dict[str, Any] = {}
    result["self"] = [result]
    return result


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def released() -> memoryview:
    view = memoryview(b"gone")
    view.release()
    return view


BAD_RESULT = "unserialisable-result"

ATTEMPTS: dict[str, Attempt] = {
    # raised
    "CancelledError": Attempt(raising(asyncio.CancelledError()), message="raised CancelledError"),
    "SystemExit": Attempt(raising(SystemExit(3)), message="raised SystemExit: 3"),
    "KeyboardInterrupt": Attempt(raising(KeyboardInterrupt), message="raised KeyboardInterrupt"),
    "GeneratorExit": Attempt(raising(GeneratorExit("early")), message="raised GeneratorExit: early"),
    "a panic of native code": Attempt(raising(PanicException("index out of bounds")), message="index out of bounds"),
    "StopIteration": Attempt(raising(StopIteration), message="raised StopIteration"),
    "StopAsyncIteration": Attempt(raising(StopAsyncIteration), message="raised StopAsyncIteration"),
    "RecursionError": Attempt(recurse, message="raised RecursionError"),
    "MemoryError": Attempt(raising(MemoryError()), message="raised MemoryError"),
    "an error that cannot be printed": Attempt(raising(Unprintable()), message="raised Unprintable"),
    "an error whose text cancels": Attempt(raising(UnprintableToo()), message="raised UnprintableToo"),
    "an error whose text is a number": Attempt(raising(NotText()), message="raised NotText"),
    "an error with 10 MB of text": Attempt(raising(ValueError("x" * LONG)), message="raised ValueError: xxx"),
    "an error with surrogates": Attempt(raising(ValueError("\udcff\0")), message="raised ValueError"),
    "an error that causes itself": Attempt(own_cause, message="circular"),
    "an exception group": Attempt(raising(ExceptionGroup("two", [ValueError("a"), KeyError("b")])), message="two"),
    "a group with an interrupt": Attempt(
        raising(BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("a")])), message="both"
    ),
    "a code that is a number": Attempt(coded(404), "404"),
    "a code that is a list": Attempt(coded([1]), "[1]"),
    "a code of 10 MB": Attempt(coded("c" * LONG), "c" * 64),
    "no code, no remedy": Attempt(coded("", None), "bad-frame"),
    "a frame error without its attributes": Attempt(raising(Bare()), "bad-frame"),
    "a frame error that cannot be printed": Attempt(raising(UnprintableFrameError("x")), "bad-frame"),
    "another kind of our errors": Attempt(raising(HedgerowError("gone", remedy="y")), "error", "gone"),
    "raises after spoiling its frame": Attempt(spoilt_then_raises),
    # returned
    "a number": Attempt(returning(5), message="returned a int"),
    "a text": Attempt(returning("text"), message="returned a str"),
    "a mapping": Attempt(returning({"score": 1}), message="returned a dict"),
    "the class Frame": Attempt(returning(Frame), message="instead of a Frame"),
    "an error": Attempt(returning(ValueError("x")), message="ValueError"),
    "a coroutine": Attempt(awaitable, message="returned a coroutine"),
    "an object without a class": Attempt(lambda _: Shifty(), message="raised "),
    "a mock of a frame": Attempt(lambda _: Mock(spec=Frame), message="a Mock instead"),
    "a frame without attributes": Attempt(lambda _: Frame.__new__(Frame), message="AttributeError"),
    "a frame of another stream": Attempt(returning(OTHER), message="in/b"),
    "a list with a frame of another stream": Attempt(lambda frame: [frame, OTHER], message="in/b"),
    "its frame moved to another stream": Attempt(moved, message="in/b"),
    "a million frames": Attempt(million, message="65,536"),
    "endless frames": Attempt(repeat, message="65,536"),
    "a generator that is cancelled": Attempt(parts_then(asyncio.CancelledError()), message="raised CancelledError"),
    "a generator that panics": Attempt(parts_then(PanicException("late")), message="late"),
    # results
    "a cycle": Attempt(publishing(cycle()), BAD_RESULT),
    "100,000 levels": Attempt(publishing(deep()), BAD_RESULT),
    "NaN": Attempt(publishing({"score": math.nan}), BAD_RESULT, "NaN"),
    "infinity in an array": Attempt(publishing({"y": np.array([1.0, -np.inf])}), BAD_RESULT, "infin"),
    "NaN beside a null": Attempt(publishing([None, [np.float32("nan")]]), BAD_RESULT, "NaN"),
    "a number of 2,000 bits": Attempt(publishing({"n": 1 << 2000}), BAD_RESULT),
    "two keys that become one": Attempt(publishing({1: "a", "1": "b"}), BAD_RESULT, "key"),
    "keys that are pairs": Attempt(publishing({(1, 2): "a"}), BAD_RESULT),
    "a surrogate": Attempt(publishing({"name": "\ud800"}), BAD_RESULT),
    "a surrogate as a key": Attempt(publishing({"\ud800": 1}), BAD_RESULT),
    "an array of objects": Attempt(publishing(np.array([object(), 1], object)), BAD_RESULT),
    "a complex number": Attempt(publishing({"z": 1j}), BAD_RESULT),
    "a long double": Attempt(publishing({"x": np.longdouble(1) / 3}), BAD_RESULT),
    "a set that interrupts": Attempt(lambda frame: frame.with_result({Unsortable(), Unsortable()}), BAD_RESULT),
    "a generator": Attempt(lambda frame: frame.with_result(iter([1])), BAD_RESULT),
    "a lazy mapping": Attempt(publishing(ChainMap({"a": 1})), BAD_RESULT),
    "a released buffer": Attempt(lambda frame: frame.with_result(released()), BAD_RESULT),
    "tensors that are a number": Attempt(lambda frame: frame.with_tensors(5), BAD_RESULT),  # type: ignore[arg-type]
}


class Poison(Stage[StageConfig]):
    """Does what the test says with the poison frame; every other frame passes."""

    act: Act = staticmethod(lambda frame: frame)

    def process(self, frame: Frame) -> Any:
        if frame.payload == POISON:
            return type(self).act(frame)
        return frame.with_result({"n": int(bytes(frame.payload))})


class PoisonList(Poison):
    """The same, without catching errors."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Any]:
        return [self.process(frame) for frame in frames]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Stage[Any]], Act], None]:
    """Let the stage `poison` be of a class, and do something with the poison frame."""

    def install(kind: type[Stage[Any]], act: Act) -> None:
        monkeypatch.setattr(Poison, "act", staticmethod(act))
        monkeypatch.setattr("hedgerow.plugins.make", lambda *_: kind(StageConfig()))

    return install


Install = Callable[[type[Stage[Any]], Act], None]


async def survives(bench: LaneBench) -> dict[str, Any]:
    """Send the poison between good frames of two streams; return its dead letter, after all others gave results."""
    bench.send([b"0", POISON, b"1"])
    bench.send([b"2"], stream="b")
    await bench.settled()
    bench.send([b"3"])
    await bench.settled()

    results = bench.published("result")
    assert [body["result"]["n"] for body in results if body["frame"]["stream"] == "in/a"] == [0, 1, 3]
    assert [body["result"]["n"] for body in results if body["frame"]["stream"] == "in/b"] == [2]
    assert len(bench.source.acked) == 5
    assert bench.tally.balanced
    (letter,) = bench.published("dead")
    assert bench.tally.dead == {letter["reason"]: 1}
    assert (letter["frame"]["stream"], letter["frame"]["topic"]) == ("in/a", "in/a")
    assert letter["remedy"]
    assert len(str(letter)) < 50_000
    return letter


@pytest.mark.parametrize("kind", [Poison, PoisonList])
@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
async def test_a_poison_frame_dies_alone(name: str, kind: type[Stage[Any]], install: Install) -> None:
    attempt = ATTEMPTS[name]
    install(kind, attempt.act)
    async with LaneBench() as bench:
        letter = await survives(bench)

    assert letter["reason"] == attempt.code
    assert attempt.message in letter["message"]


# What a whole list can do wrong.


def in_place(outcome: Any) -> Callable[[Sequence[Frame]], Any]:
    """Return an outcome in the poison frame's place."""
    return lambda frames: [
        outcome if frame.payload == POISON else frame.with_result({"n": int(bytes(frame.payload))}) for frame in frames
    ]


LISTS: dict[str, tuple[Callable[[Sequence[Frame]], Any], str]] = {
    "a set": (set, "which has no order"),
    "a mapping": (lambda frames: {frame.id: frame for frame in frames}, "which has no order"),
    "a list that lies": (Liar, "0 outcomes for 1 frames"),
    "endless frames": (lambda frames: repeat(frames[0]), "more than 1 outcomes for 1 frames"),
    "nothing": (lambda _: None, "TypeError"),
    "a number": (len, "TypeError"),
    "a cancellation in its place": (in_place(asyncio.CancelledError("x")), "CancelledError: x"),
    "a panic in its place": (in_place(PanicException), "returned a type"),
    "one outcome too few": (lambda frames: frames[1:], "0 outcomes for 1 frames"),
}


@pytest.mark.parametrize("name", LISTS)
async def test_a_list_with_a_poison_frame_costs_that_frame_alone(name: str, install: Install) -> None:
    act, message = LISTS[name]

    class Broken(Poison):
        def process_many(self, frames: Sequence[Frame]) -> Any:
            return act(frames) if any(frame.payload == POISON for frame in frames) else super().process_many(frames)

    install(Broken, lambda frame: frame)
    async with LaneBench() as bench:
        letter = await survives(bench)

    assert letter["reason"] == "stage-failed"
    assert message in letter["message"]


class Splitting(Stage[StageConfig]):
    """Splits each frame into 300."""

    def process(self, frame: Frame) -> Any:
        return [frame] * 300


async def test_stages_that_split_again_and_again_cannot_exhaust_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.plugins.make", lambda *_: Splitting(StageConfig()))
    async with LaneBench(stages=["splitting"] * 8) as bench:
        bench.send([b"1"])
        await bench.settled()

    (letter,) = bench.published("dead")
    assert "65,536" in letter["message"]


# Drops, counters, tracebacks.


class Odd:
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("still", "still"),
        ("", "dropped"),
        (None, "None"),
        ([1], "[1]"),
        ("x" * LONG, "x" * 64),
        ("\udcff\0", "\\udcff\\x00"),
        (Odd(), "(Odd cannot be formatted)"),
    ],
)
async def test_a_drop_with_an_odd_reason_is_counted(reason: Any, counted: str, install: Install) -> None:
    install(Poison, returning(Drop(reason)))
    async with LaneBench() as bench:
        bench.send([b"0", POISON, b"1"])
        await bench.settled()

    assert dict(bench.tally.dropped) == {counted: 1}
    assert len(bench.source.acked) == 3


def numbered_drop(count: Iterator[int]) -> Act:
    return lambda _: Drop(f"score-{next(count)}")


def numbered_error(count: Iterator[int]) -> Act:
    def act(frame: Frame) -> NoReturn:
        raise FrameError("x", code=f"score-{next(count)}")

    return act


@pytest.mark.parametrize("make", [numbered_drop, numbered_error])
async def test_reasons_without_end_are_counted_within_limits(make: Any, install: Install) -> None:
    """Each is a metric's label and part of every health report."""
    install(Poison, make(itertools.count()))
    async with LaneBench(queue={"max_frames_per_stream": 1000}) as bench:
        bench.send([POISON] * 500)
        await bench.settled()

    counts = bench.tally.dropped + bench.tally.dead
    assert (counts.total(), len(counts), counts["other"]) == (500, 101, 400)


async def test_a_dead_letter_has_the_traceback_of_the_stage_alone(install: Install) -> None:
    install(Poison, own_cause)
    async with LaneBench() as bench:
        letter = await survives(bench)

    lines = letter["traceback"].splitlines()
    assert any("in own_cause" in line for line in lines)
    assert "ValueError: circular" in lines
    assert "chain.py" not in letter["traceback"]


async def test_a_traceback_without_end_is_cut(install: Install) -> None:
    install(Poison, raising(ValueError("x" * LONG)))
    async with LaneBench() as bench:
        letter = await survives(bench)

    assert len(letter["traceback"]) <= 10_000
    assert letter["traceback"].startswith("Traceback")


async def test_an_error_of_the_sensor_has_no_traceback(install: Install) -> None:
    install(Poison, raising(FrameError("torn", code="torn")))
    async with LaneBench() as bench:
        assert "traceback" not in await survives(bench)


# The lane itself.


async def test_a_lane_whose_thread_ends_is_replaced_and_its_frame_is_dead(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code in the process can end any thread: here an exception outside all that catches."""
    install(Poison, lambda frame: frame)
    async with LaneBench() as bench:
        (lane,) = bench.dispatcher._lanes
        with monkeypatch.context() as patch:
            patch.setattr(Job, "run", _exits)
            bench.send([POISON])
            await asyncio.to_thread(lane.join, 60)
        assert (lane.is_alive(), bench.dispatcher.busy) == (False, 1)

        assert bench.dispatcher.replace_dead_lanes() == 1
        bench.send([b"1"])
        await bench.settled()
        assert bench.dispatcher.replace_dead_lanes() == 0

    assert bench.tally.dead == {"lane-died": 1}
    assert [body["result"]["n"] for body in bench.published("result")] == [1]
    assert len(bench.source.acked) == 2


def _exits(*_: Any) -> NoReturn:
    raise SystemExit


async def test_an_idle_lane_whose_thread_ends_is_replaced(install: Install) -> None:
    install(Poison, lambda frame: frame)
    async with LaneBench() as bench:
        (lane,) = bench.dispatcher._lanes
        _end(lane.ident or 0)
        lane._inbox.put(object())  # type: ignore[arg-type] - wakes it up
        await asyncio.to_thread(lane.join, 60)
        assert bench.dispatcher.replace_dead_lanes() == 1
        bench.send([b"1"])
        await bench.settled()

    assert [body["result"]["n"] for body in bench.published("result")] == [1]


def _end(thread: int) -> None:
    """Raise SystemExit in another thread, as debuggers and some schedulers do."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))


@pytest.mark.parametrize("error", [ValueError, FrameError])
async def test_what_a_stage_held_when_it_failed_is_freed_at_once(error: Any, install: Install) -> None:
    """Not when garbage is collected: a service does that rarely, and a picture takes megabytes."""
    held: list[weakref.ref[Any]] = []

    def act(frame: Frame) -> NoReturn:
        picture = np.zeros(1000)
        held.append(weakref.ref(picture))
        raise error("bad")

    install(Poison, act)
    async with LaneBench() as bench:
        gc.disable()
        try:
            bench.send([POISON, b"1"])
            await bench.settled()
            assert [each() is None for each in held] == [True]
        finally:
            gc.enable()


async def test_an_unexpected_error_before_the_stages_costs_one_frame(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both on the event loop, where the stream is determined, and in the lane, where the frame is made."""
    install(Poison, lambda frame: frame)
    complete = FrameMaker.complete

    def fail(maker: FrameMaker, frame: Frame, message: Message) -> Frame:
        return complete(maker, frame, message) if message.payload != POISON else 1 / 0  # type: ignore[return-value]

    async with LaneBench() as bench:
        monkeypatch.setattr(FrameMaker, "complete", fail)
        letter = await survives(bench)
    assert (letter["reason"], letter["message"]) == ("internal", "ZeroDivisionError: division by zero")

    monkeypatch.undo()
    install(Poison, lambda frame: frame)
    async with LaneBench() as bench:
        bench.intake._stream_key = lambda message: message.topic if message.payload != POISON else 1 / 0  # type: ignore[assignment]
        assert (await survives(bench))["reason"] == "internal"

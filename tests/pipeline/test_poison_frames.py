"""Poison frames: whatever a stage raises or returns ends that frame alone; its lane and its stream go on.

Each attempt is (what the stage does with one frame, code of the dead letter, part of its message).
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, NoReturn
from unittest.mock import Mock

import numpy as np
import pytest

from hedgerow import Drop, Frame, FrameError, HedgerowError, Stage, StageConfig
from tests.pipeline.lane_bench import LaneBench

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
        return 5  # type: ignore[return-value]


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
    return lambda frame: value


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
    "an object without a class": Attempt(lambda frame: Shifty(), message="raised "),
    "a mock of a frame": Attempt(lambda frame: Mock(spec=Frame), message="a Mock instead"),
    "a frame without attributes": Attempt(lambda frame: Frame.__new__(Frame), message="AttributeError"),
    "a frame of another stream": Attempt(returning(OTHER), message="in/b"),
    "a list with a frame of another stream": Attempt(lambda frame: [frame, OTHER], message="in/b"),
    "its frame moved to another stream": Attempt(moved, message="in/b"),
    "a million frames": Attempt(million, message="65,536"),
    "endless frames": Attempt(lambda frame: repeat(frame), message="65,536"),
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
        monkeypatch.setattr("hedgerow.plugins.make", lambda name, config: kind(StageConfig()))

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

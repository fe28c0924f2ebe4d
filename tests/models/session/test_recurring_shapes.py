"""Compiling for shapes that recur: only what is the same and faster is kept, and no batch fails or waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from hedgerow.backends.base import SessionOptions, TensorSpec
from hedgerow.backends.openvino import OpenVino
from hedgerow.errors import HedgerowError, InferenceError
from hedgerow.frame import Array
from hedgerow.models.session.recurring_shapes import RecurringShapes

OnnxFile = Callable[..., Path]
ROWS = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


class TimedSession:
    """A session whose time is given, instead of measured."""

    inputs = (TensorSpec("x", (None, 3), np.dtype(np.float32)),)
    batch_sizes = ()

    def __init__(self, clock: Clock, took_s: float, variant: TimedSession | None = None) -> None:
        self.clock = clock
        self.took_s = took_s
        self.variant = variant
        self.compiled: list[Mapping[str, Any]] = []
        self.runs = 0
        self.closed = False
        self.factor = 2.0
        self.failure: HedgerowError | None = None

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self.failure is not None:
            raise self.failure
        self.runs += 1
        self.clock.now += self.took_s
        return {"y": batch["x"] * np.float32(self.factor)}

    def for_shapes(self, shapes: Mapping[str, Any]) -> Any:
        self.compiled.append(shapes)
        return self.variant

    def close(self) -> None:
        self.closed = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    """A model and what is compiled for its shapes, which takes `variant_s` for a batch instead of one second."""

    def __init__(self, variant_s: float = 0.5) -> None:
        self.clock = Clock()
        self.variant = TimedSession(self.clock, variant_s)
        self.session = TimedSession(self.clock, 1.0, self.variant)
        self.unchanged = True
        self.shapes: Any = RecurringShapes("door", self.session, lambda: self.unchanged, self.clock)  # type: ignore[arg-type]

    def run(self, times: int, rows: int = 4) -> None:
        """Run batches of so many rows, and wait until what they start in the background is done."""
        for _ in range(times):
            batch = {"x": np.ones((rows, 3), np.float32)}
            outputs, _ = self.shapes.run(batch)
            assert outputs["y"].tolist() == [[2.0] * 3] * rows
            assert self.shapes._idle.wait(60)


def test_a_shape_that_recurs_is_compiled_compared_and_kept_if_it_is_faster() -> None:
    model = Model(variant_s=0.9)
    model.run(31)
    assert not model.session.compiled
    model.run(1)
    assert model.session.compiled == [{"x": (4, 3)}]
    assert model.shapes.kept == []
    model.run(48)
    assert model.shapes.kept == [((4, 3),)]
    before = model.session.runs
    model.run(10)

    assert model.session.runs == before, "from then on all run on it"


def test_during_the_trial_both_take_turns_in_the_order_a_b_b_a() -> None:
    """So that a trend of the machine decides nothing."""
    model = Model()
    model.run(32)
    turns = []
    for _ in range(8):
        before = model.variant.runs
        model.run(1)
        turns.append("B" if model.variant.runs > before else "A")

    assert "".join(turns) == "ABBAABBA"


@pytest.mark.parametrize(("variant_s", "why"), [(0.96, "0.96 of the time"), (1.5, "1.50 of the time")])
def test_what_is_not_faster_is_freed_and_not_tried_again(variant_s: float, why: str) -> None:
    model = Model(variant_s)
    with capture_logs() as logs:
        model.run(32 + 48 + 100)

    assert model.variant.closed
    assert model.shapes.kept == []
    assert len(model.session.compiled) == 1
    assert why in logs[0]["why"]


def test_other_outputs_are_refused_before_any_frame_gets_them() -> None:
    model = Model()
    model.variant.factor = 2.001
    with capture_logs() as logs:
        model.run(100)

    assert model.variant.closed
    assert "differs by more than 1e-05" in logs[0]["why"]


def test_a_file_that_was_replaced_meanwhile_is_not_compiled_in() -> None:
    """Its weights would be those of another version."""
    model = Model()
    model.unchanged = False
    with capture_logs() as logs:
        model.run(100)

    assert model.variant.closed
    assert logs[0]["why"] == "its file has changed"


def test_a_batch_that_fails_on_it_runs_on_the_other_and_it_is_freed() -> None:
    model = Model()
    model.run(32 + 48)
    assert model.shapes.kept
    model.variant.failure = InferenceError("the device is gone", remedy="")

    model.run(3)

    assert model.variant.closed
    assert model.shapes.kept == []


def test_a_backend_that_gains_nothing_is_asked_once() -> None:
    model = Model()
    model.session.variant = None
    model.run(200)
    model.run(200, rows=5)

    assert len(model.session.compiled) == 1


def test_shapes_that_do_not_recur_are_never_compiled_and_take_no_memory() -> None:
    model = Model()
    for rows in range(1, 600):
        model.run(1, rows)

    assert not model.session.compiled
    assert len(model.shapes._counts) <= 257


def test_at_most_four_are_kept_and_one_that_is_no_longer_used_makes_room() -> None:
    model = Model()
    made: list[TimedSession] = []

    def compile_(shapes: Mapping[str, Any]) -> TimedSession:
        made.append(TimedSession(model.clock, 0.5))
        return made[-1]

    model.session.for_shapes = compile_  # type: ignore[method-assign]
    for rows in range(1, 6):
        model.run(100, rows)
    assert len(made) == len(model.shapes.kept) == 4
    for _ in range(4200 // 30):
        for rows in (2, 3, 4):
            model.run(10, rows)
    model.run(100, rows=5)

    assert [session.closed for session in made] == [True, False, False, False, False]
    assert ((5, 3),) in model.shapes.kept


def test_closing_frees_what_was_compiled() -> None:
    model = Model()
    model.run(32)
    model.shapes.close()

    assert model.variant.closed


def test_openvino_gives_the_same_for_a_shape_that_it_was_compiled_for(onnx_file: OnnxFile) -> None:
    path = onnx_file(
        """(float[N,1,H,W] x) => (float[N,1,H,W] y)
        <float[1,1,3,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}> { y = Conv<pads=[1,1,1,1]>(x, w) }"""
    )
    session = OpenVino().open(path, SessionOptions())
    assert RecurringShapes.may_help(session)
    own = session.for_shapes({"x": (2, 1, 32, 48)})
    batch = {"x": np.random.default_rng(1).normal(size=(2, 1, 32, 48)).astype(np.float32)}

    assert own is not None
    assert np.allclose(own.run(batch)["y"], session.run(batch)["y"], rtol=0, atol=1e-5)
    assert not RecurringShapes.may_help(own) or own.inputs == session.inputs


def test_sessions_of_fixed_shapes_and_of_compiled_sizes_are_left_alone(onnx_file: OnnxFile) -> None:
    fixed = OpenVino().open(onnx_file("(float[4,3] x) => (float[4,3] y) { y = Add(x, x) }"), SessionOptions())
    sizes = OpenVino().open(onnx_file(ROWS), SessionOptions(batch_sizes=(1, 2)))

    assert not RecurringShapes.may_help(fixed)
    assert not RecurringShapes.may_help(sizes)

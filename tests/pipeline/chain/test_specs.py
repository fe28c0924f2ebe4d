"""Declarations of stages: what is unknown is accepted, and only what is declared is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.errors import HedgerowError, PluginError, StageMismatch
from hedgerow.frame import Frame
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.pipeline.chain.specs import RECEIVED
from hedgerow.stage import ArraySpec, FrameSpec, Stage, StageConfig
from hedgerow.stages.parse import Parse, ParseConfig


class Silent(Stage[StageConfig]):
    """A plugin of a few lines: it declares nothing, and makes what no other stage makes."""

    def process(self, frame: Frame) -> Frame:
        return frame.with_tensors({"made": np.zeros(3, np.float32)})


class Sink(Stage[StageConfig]):
    """Takes a picture, and a tensor of three numbers."""

    closed = False

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        incoming.expect_array(ArraySpec("uint8", (None, None, 3)), remedy="Decode it.")
        incoming.expect_tensor("made", ArraySpec("float32", (3,)), remedy="Make it.")
        incoming.expect_meta("fit", remedy="Fit it.")
        return incoming

    def close(self) -> None:
        self.closed = True


class Broken(Stage[StageConfig]):
    """Its declaration has a bug."""

    def __init__(self, act: Any) -> None:
        super().__init__(StageConfig())
        self.act = act

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        result: FrameSpec = self.act()
        return result


class OwnParse(Parse):
    """Someone's subclass of a stage, which takes pictures too; the declaration of its base says nothing of it."""

    def process(self, frame: Frame) -> Frame:
        return frame.with_array(np.zeros((2, 2, 3), np.uint8))


def build(*stages: Stage[Any], incoming: FrameSpec = RECEIVED) -> Chain:
    context = PipelineContext("p", {}, Path(), ModelPool(cores=1))
    return build_chain([(type(stage).__name__.lower(), stage) for stage in stages], context, incoming=incoming)


def test_nothing_is_refused_after_a_stage_that_declares_nothing() -> None:
    build(Silent(StageConfig()), Sink(StageConfig()))


def test_nothing_is_refused_of_frames_of_which_nothing_is_known() -> None:
    build(Sink(StageConfig()), incoming=FrameSpec())


def test_a_subclass_that_processes_in_its_own_way_does_not_inherit_the_declaration() -> None:
    build(OwnParse(ParseConfig(dtype="float32")), Sink(StageConfig()))


@pytest.mark.parametrize(
    ("incoming", "text"),
    [
        (RECEIVED, "Stage sink takes an array, uint8[?, ?, 3]; it gets frames without one"),
        (FrameSpec(ArraySpec("int16", (2,))), "Stage sink takes an array, uint8[?, ?, 3]; it gets int16[2]"),
        (FrameSpec(tensors={}), "Stage sink takes the tensor 'made'; it gets frames without tensors"),
        (
            FrameSpec(tensors={"a": ArraySpec(), "b": ArraySpec("uint8")}),
            "Stage sink takes the tensor 'made'; it gets a: unknown, b: uint8[…]",
        ),
        (FrameSpec(tensors={"made": ArraySpec(shape=(4,))}), "Stage sink takes made: float32[3]; it gets made: any[4]"),
        (FrameSpec(more_meta=False), "Stage sink takes meta 'fit'; it gets frames without it"),
    ],
)
def test_a_mismatch_names_both_sides_and_a_remedy(incoming: FrameSpec, text: str) -> None:
    sink = Sink(StageConfig())

    with pytest.raises(StageMismatch) as caught:
        build(sink, incoming=incoming)

    assert str(caught.value) == text
    assert caught.value.remedy.endswith(" it.")
    assert sink.closed


def test_what_is_known_is_kept_by_copies() -> None:
    spec = RECEIVED.with_array(ArraySpec("uint8"), a=1).with_tensors({"x": ArraySpec()}, b=2).with_meta(c=None)

    assert (str(spec.array), spec.meta) == ("uint8[…]", {"rate": None, "channels": None, "a": 1, "b": 2, "c": None})
    assert spec.expect_meta("b", remedy="") == 2
    assert spec.expect_meta("c", remedy="") is None


def nonsense() -> Any:
    return None


def crash() -> Any:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("act", "text"),
    [(nonsense, "TypeError: it returned a NoneType, not a FrameSpec"), (crash, "KeyError: 'x'")],
)
def test_a_declaration_with_a_bug_is_a_broken_plugin(act: Any, text: str) -> None:
    with pytest.raises(PluginError) as caught:
        build(Broken(act))

    assert str(caught.value) == f"Stage broken cannot be checked: {text}"


def test_a_declaration_may_raise_any_error_of_hedgerow() -> None:
    def act() -> Any:
        raise HedgerowError("no", remedy="yes")

    with pytest.raises(HedgerowError, match=r"^no$"):
        build(Broken(act))


dims = st.none() | st.integers(0, 3)
specs = st.builds(
    ArraySpec, st.none() | st.sampled_from(["uint8", "float32"]), st.none() | st.lists(dims, max_size=3).map(tuple)
)


@given(specs, specs)
def test_agreement_is_mutual(left: ArraySpec, right: ArraySpec) -> None:
    assert left.agrees(right) == right.agrees(left)
    assert left.agrees(left)


@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.booleans(), min_size=5, max_size=5))
def test_what_is_less_known_of_an_array_never_contradicts_it(sides: list[int], hidden: list[bool]) -> None:
    """So a stage that declares less than it could is never refused for it."""
    exact = ArraySpec.of(np.zeros(sides, np.uint8))
    shape = tuple(None if hide else side for hide, side in zip(hidden, sides, strict=False))

    assert exact.agrees(ArraySpec(None if hidden[3] else "uint8", None if hidden[4] else shape))

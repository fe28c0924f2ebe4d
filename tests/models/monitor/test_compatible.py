"""Which versions of a model can replace each other in stages that are set up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from hedgerow.backends.base import TensorSpec
from hedgerow.models.monitor.compatible import IncompatibleVersion, incompatibilities


@dataclass
class Model:
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    state: dict[str, str] = field(default_factory=dict)
    batch_axis: dict[str, int] = field(default_factory=dict)


def spec(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(dtype))


def model(x: TensorSpec, y: TensorSpec, **more: dict[str, int]) -> Model:
    return Model((x,), (y,), **more)  # type: ignore[arg-type]


X, Y = spec("x", None, 3), spec("y", None, 2)
RECURRENT = Model(
    (X, spec("h", 2, None, 64)), (Y, spec("hn", 2, None, 64)), state={"h": "hn"}, batch_axis={"h": 1, "hn": 1}
)


def test_a_version_like_the_one_before_fits() -> None:
    assert incompatibilities(model(X, Y), model(X, Y)) == []
    assert incompatibilities(RECURRENT, RECURRENT) == []


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (spec("x", None, 4), Y, ["its input is x: float32[?, 4], was x: float32[?, 3]"]),
        (spec("x", None, 3, 1), Y, ["its input is x: float32[?, 3, 1], was x: float32[?, 3]"]),
        (spec("x", None, 3, dtype="uint8"), Y, ["its input is x: uint8[?, 3], was x: float32[?, 3]"]),
        (X, spec("y", None, 5), ["its output is y: float32[?, 5], was y: float32[?, 2]"]),
        (X, spec("y", None, 2, dtype="int64"), ["its output is y: int64[?, 2], was y: float32[?, 2]"]),
        (
            spec("image", None, 3), Y,
            ["it has no input x", "it has the new input image: float32[?, 3], which stages do not provide"],
        ),
        (X, spec("scores", None, 2), ["it has no output y"]),
    ],
)  # fmt: skip
def test_another_name_type_or_size_does_not_fit(x: TensorSpec, y: TensorSpec, why: list[str]) -> None:
    assert incompatibilities(model(X, Y), model(x, y)) == why


def test_all_incompatibilities_are_listed() -> None:
    old = Model((spec("a", None, 1), spec("b", None, 1), spec("c", None, 1)))
    new = Model((spec("b", None, 2), spec("c", None, 2)))

    assert [why.split(",")[0] for why in incompatibilities(old, new)] == [
        "its input is b: float32[?", "its input is c: float32[?", "it has no input a",
    ]  # fmt: skip


def test_a_fixed_dimension_of_an_input_may_become_dynamic_but_not_the_reverse() -> None:
    fixed, dynamic = model(spec("x", None, 3), Y), model(spec("x", None, None), Y)

    assert incompatibilities(fixed, dynamic) == []
    assert incompatibilities(dynamic, fixed) != []


def test_a_dynamic_dimension_of_an_output_may_become_fixed_but_not_the_reverse() -> None:
    fixed, dynamic = model(X, spec("y", None, 2)), model(X, spec("y", None, None))

    assert incompatibilities(dynamic, fixed) == []
    assert incompatibilities(fixed, dynamic) != []


def test_an_output_of_unknown_shape_fits_any() -> None:
    unknown, known = model(X, spec("y")), model(X, Y)

    assert incompatibilities(unknown, known) == incompatibilities(known, unknown) == []
    assert incompatibilities(model(spec("x"), Y), model(X, Y)) != [], "but an input without dimensions is a scalar"


def test_the_size_of_the_batch_axis_does_not_matter() -> None:
    assert incompatibilities(model(spec("x", 1, 3), spec("y", 1, 2)), model(X, Y)) == []
    assert incompatibilities(model(X, Y), model(spec("x", 8, 3), spec("y", 8, 2))) == []


def test_the_batch_axis_must_stay_the_same() -> None:
    old = model(X, Y, batch_axis={"x": 1})

    assert incompatibilities(old, model(X, Y)) == ["its input x has batch axis 0, was 1"]
    assert incompatibilities(model(X, Y), old) == ["its input x has batch axis 1, was 0"]
    assert incompatibilities(model(spec("x"), Y, batch_axis={"x": 1}), model(spec("x"), Y)) == [], (
        "a scalar has no batch axis"
    )


def test_hidden_state_may_have_another_size_but_not_another_type_or_name() -> None:
    """It starts at zero again."""
    larger = Model(
        (X, spec("h", 4, None, 32)), (Y, spec("hn", 4, None, 32)), RECURRENT.state, batch_axis=RECURRENT.batch_axis
    )
    half = Model((X, spec("h", 2, None, 64, dtype="float16")), RECURRENT.outputs, RECURRENT.state, {"h": 1, "hn": 1})

    assert incompatibilities(RECURRENT, larger) == []
    assert incompatibilities(RECURRENT, half) == ["its input is h: float16[2, ?, 64], was h: float32[2, ?, 64]"]
    assert incompatibilities(RECURRENT, model(X, Y))[0] == "its hidden state is none, was h → hn"
    assert incompatibilities(model(X, Y), RECURRENT)[0] == "its hidden state is h → hn, was none"


def test_the_error_lists_all_incompatibilities() -> None:
    error = IncompatibleVersion("door", "door@2.0.0", ["it has no input x", "it has no output y"])

    assert "it has no input x; it has no output y" in str(error)
    assert error.remedy

"""Which versions of a model may take each other's place without a stage noticing."""

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
        (spec("x", None, 4), Y, ["its input is x: float32[?, 4], it was x: float32[?, 3]"]),
        (spec("x", None, 3, 1), Y, ["its input is x: float32[?, 3, 1], it was x: float32[?, 3]"]),
        (spec("x", None, 3, dtype="uint8"), Y, ["its input is x: uint8[?, 3], it was x: float32[?, 3]"]),
        (X, spec("y", None, 5), ["its output is y: float32[?, 5], it was y: float32[?, 2]"]),
        (X, spec("y", None, 2, dtype="int64"), ["its output is y: int64[?, 2], it was y: float32[?, 2]"]),
        (
            spec("image", None, 3), Y,
            ["it has no input x", "it takes image: float32[?, 3], which nobody gives it"],
        ),
        (X, spec("scores", None, 2), ["it has no output y"]),
    ],
)  # fmt: skip
def test_another_name_type_or_size_does_not_fit(x: TensorSpec, y: TensorSpec, why: list[str]) -> None:
    assert incompatibilities(model(X, Y), model(x, y)) == why


def test_one_misfit_does_not_hide_the_others() -> None:
    old = Model((spec("a", None, 1), spec("b", None, 1), spec("c", None, 1)))
    new = Model((spec("b", None, 2), spec("c", None, 2)))

    assert [why.split(",")[0] for why in incompatibilities(old, new)] == [
        "its input is b: float32[?", "its input is c: float32[?", "it has no input a",
    ]  # fmt: skip


def test_an_input_may_become_more_open_but_not_more_exact() -> None:
    closed, opened = model(spec("x", None, 3), Y), model(spec("x", None, None), Y)

    assert incompatibilities(closed, opened) == []
    assert incompatibilities(opened, closed) != []


def test_an_output_may_become_more_exact_but_not_more_open() -> None:
    closed, opened = model(X, spec("y", None, 2)), model(X, spec("y", None, None))

    assert incompatibilities(opened, closed) == []
    assert incompatibilities(closed, opened) != []


def test_an_output_whose_dimensions_nobody_knows_fits_any() -> None:
    unknown, known = model(X, spec("y")), model(X, Y)

    assert incompatibilities(unknown, known) == incompatibilities(known, unknown) == []
    assert incompatibilities(model(spec("x"), Y), model(X, Y)) != [], "but an input without dimensions is a scalar"


def test_how_many_rows_a_batch_has_is_the_slots_business() -> None:
    assert incompatibilities(model(spec("x", 1, 3), spec("y", 1, 2)), model(X, Y)) == []
    assert incompatibilities(model(X, Y), model(spec("x", 8, 3), spec("y", 8, 2))) == []


def test_batches_are_stacked_on_the_same_axis() -> None:
    old = model(X, Y, batch_axis={"x": 1})

    assert incompatibilities(old, model(X, Y)) == ["its input x is stacked on axis 0, it was 1"]
    assert incompatibilities(model(X, Y), old) == ["its input x is stacked on axis 1, it was 0"]
    assert incompatibilities(model(spec("x"), Y, batch_axis={"x": 1}), model(spec("x"), Y)) == [], (
        "a scalar is not stacked"
    )


def test_hidden_state_may_have_another_size_but_not_another_type_or_name() -> None:
    """It begins at zero again."""
    larger = Model(
        (X, spec("h", 4, None, 32)), (Y, spec("hn", 4, None, 32)), RECURRENT.state, batch_axis=RECURRENT.batch_axis
    )
    half = Model((X, spec("h", 2, None, 64, dtype="float16")), RECURRENT.outputs, RECURRENT.state, {"h": 1, "hn": 1})

    assert incompatibilities(RECURRENT, larger) == []
    assert incompatibilities(RECURRENT, half) == ["its input is h: float16[2, ?, 64], it was h: float32[2, ?, 64]"]
    assert incompatibilities(RECURRENT, model(X, Y))[0] == "its hidden state is none, it was h → hn"
    assert incompatibilities(model(X, Y), RECURRENT)[0] == "its hidden state is h → hn, it was none"


def test_the_error_says_all_that_does_not_fit() -> None:
    error = IncompatibleVersion("door", "door@2.0.0", ["it has no input x", "it has no output y"])

    assert "it has no input x; it has no output y" in str(error)
    assert error.remedy

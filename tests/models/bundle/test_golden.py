"""Golden cases: outputs within tolerance pass, and the largest deviation is reported; and the files they are stored in."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hedgerow.errors import InferenceError
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import BadArrays, read_arrays, write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.golden import GoldenOutcome, check_golden, compare, needed_tolerance
from hedgerow.models.bundle.manifest import GoldenCase, Manifest, Needs, Tolerance, Variant, digest_of

INPUT = {"x": np.linspace(-1, 1, 100, dtype=np.float32).reshape(1, 100)}
OUTPUT = {"y": INPUT["x"] * 2, "best": np.array([3])}


def outcome_of(folder: Path, answer: Any, **tolerance: float) -> GoldenOutcome:
    """Check the golden case of a model that returns, or raises, this answer."""
    write_arrays(folder / "in.npz", INPUT)
    write_arrays(folder / "out.npz", OUTPUT)
    file = describe_file(folder / "in.npz", "in.npz")
    variant = Variant(
        name="v",
        format="onnx",
        precision="fp32",
        files=(file,),
        model_digest=digest_of(b""),
        needs=Needs(backends=("onnxruntime",)),
        tolerance=Tolerance(**tolerance),
    )
    case = GoldenCase(inputs=file, outputs={"v": describe_file(folder / "out.npz", "out.npz")})
    manifest = Manifest(name="m", version="1.0.0", inputs=(), outputs=(), variants=(variant,), golden=(case,))

    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        assert {name: array.tolist() for name, array in inputs.items()} == {"x": INPUT["x"].tolist()}
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    return check_golden(run, folder, manifest, variant)


def test_the_same_numbers_pass(tmp_path: Path) -> None:
    assert outcome_of(tmp_path, OUTPUT).passed


def test_rounding_differences_pass(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, {**OUTPUT, "y": OUTPUT["y"] * np.float32(1.0005)})

    assert outcome.passed
    assert 0 < outcome.worst <= 1


def altered(place: int, value: float) -> dict[str, Array]:
    y = OUTPUT["y"].copy()
    y[0, place] = value
    return {**OUTPUT, "y": y}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (altered(7, 0.5), "y: 0.5 instead of -1.71717"),
        (altered(7, float("nan")), "y: nan instead"),
        (altered(7, float("inf")), "y: inf instead"),
        ({**OUTPUT, "best": np.array([4])}, "best: 4 instead of 3"),
        ({"y": OUTPUT["y"]}, "returned no best"),
        ({**OUTPUT, "y": OUTPUT["y"][0]}, r"float32\[100\] instead of float32\[1, 100\]"),
        ({**OUTPUT, "y": OUTPUT["y"].astype(np.float64)}, "float64"),
        (InferenceError("out of memory", remedy="-"), "failed: out of memory"),
    ],
    ids=["value", "nan", "inf", "index", "missing", "shape", "dtype", "error"],
)
def test_wrong_outputs_do_not_pass(tmp_path: Path, answer: Any, message: str) -> None:
    outcome = outcome_of(tmp_path, answer)

    assert not outcome.passed
    assert outcome.worst > 1
    assert re.search(message, outcome.detail)


def test_the_tolerance_allows_a_share_of_outliers(tmp_path: Path) -> None:
    assert outcome_of(tmp_path, altered(7, 0.5), outliers=0.01).passed
    assert not outcome_of(tmp_path, altered(7, 0.5), outliers=0.009).passed


def test_a_damaged_golden_file_is_an_error(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.npz", INPUT)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])

    with pytest.raises(BadArrays):
        read_arrays(tmp_path / "x.npz")


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    """Reading them would run code from the file."""
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}]))

    with pytest.raises(BadArrays):
        read_arrays(tmp_path / "x.npz")
    with pytest.raises(BadArrays, match="object"):
        write_arrays(tmp_path / "y.npz", {"x": np.array(["a", None])})


def test_the_same_arrays_produce_the_same_file(tmp_path: Path) -> None:
    write_arrays(tmp_path / "one.npz", {"a": np.arange(5), "b": np.ones((2, 3))})
    write_arrays(tmp_path / "two.npz", {"b": np.ones((2, 3)).T.copy().T, "a": np.arange(5)})

    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


ANY = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
)


@given(ANY)
def test_written_arrays_are_read_back_unchanged(array: Array) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder) / "x.npz", {"a/b:0": array})
        read = read_arrays(Path(folder) / "x.npz")

    assert read.keys() == {"a/b:0"}
    assert read["a/b:0"].dtype == array.dtype
    np.testing.assert_array_equal(read["a/b:0"], array)


@given(ANY)
def test_identical_outputs_need_no_tolerance(array: Array) -> None:
    assert compare(array, array.copy(), Tolerance(relative=0, absolute=0))[0] == 0
    assert needed_tolerance({"y": array}, {"y": array.copy()}, 0) == 0


FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1), st.floats(0, 0.1), st.sampled_from([0, 0.1, 0.5]))
def test_outputs_pass_with_the_tolerance_they_need_and_not_with_less(
    values: list[tuple[float, float]], relative: float, outliers: float
) -> None:
    expected, actual = np.array(values, np.float32).T.copy()

    needed = needed_tolerance({"y": expected}, {"y": actual}, relative, outliers)
    enough = Tolerance(relative=relative, absolute=max(0.0, needed) * 1.001 + 1e-12, outliers=outliers)

    assert compare(expected, actual, enough)[0] <= 1
    if needed > 1e-6:
        too_little = Tolerance(relative=relative, absolute=needed * 0.98, outliers=outliers)
        assert compare(expected, actual, too_little)[0] > 1

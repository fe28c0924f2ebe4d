"""`resize`, `letterbox`, and mapping boxes back onto the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hedgerow import HedgerowError
from hedgerow.testing import frame, run_stage
from hedgerow_vision.images import pictures
from hedgerow_vision.images.fit import Fit
from hedgerow_vision.images.resize import Letterbox, Resize

Picture = NDArray[np.uint8]


def solid(height: int, width: int, *colour: int) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def tensor_of(stage: Any, image: Picture, **config: Any) -> NDArray[Any]:
    run = run_stage(stage, [frame(image)], **config)
    assert run.dead == {}
    return run.out[0].tensors["image"]


def test_pixels_are_scaled_and_normalised() -> None:
    tensor = tensor_of(Resize, solid(10, 10, 255, 51, 0), size=4, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    assert tensor.shape == (1, 3, 4, 4)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    expected = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(tensor[0, :, 0, 0], expected, rtol=1e-5)


def test_the_range_may_be_minus_one_to_one() -> None:
    tensor = tensor_of(Resize, solid(8, 8, 0, 255, 51), size=4, range=[-1, 1], layout="nhwc")

    np.testing.assert_allclose(tensor[0, 0, 0], [-1, 1, -0.6], atol=1e-6)


@pytest.mark.parametrize("stage", [Resize, Letterbox])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_both_layouts_hold_the_same_values(stage: Any, channels: str, dtype: str, astronaut: Picture) -> None:
    config: dict[str, Any] = {"size": [96, 64], "channels": channels, "dtype": dtype}
    if dtype == "float32":
        config |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}

    first = tensor_of(stage, astronaut, layout="nchw", **config)
    last = tensor_of(stage, astronaut, layout="nhwc", **config)

    assert first.shape == (1, 3, 64, 96)
    assert last.shape == (1, 64, 96, 3)
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, atol=1e-6)


def test_bgr_is_rgb_reversed(astronaut: Picture) -> None:
    rgb = tensor_of(Resize, astronaut, size=32)
    bgr = tensor_of(Resize, astronaut, size=32, channels="bgr")

    np.testing.assert_array_equal(rgb[:, ::-1], bgr)


@pytest.mark.parametrize("stage", [Resize, Letterbox])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_grey_is_the_brightness_of_the_colours(stage: Any, layout: str, dtype: str, astronaut: Picture) -> None:
    """ITU-R BT.601, as in Pillow and OpenCV: a mean of the colours, or one of them, would be another picture."""
    config: dict[str, Any] = {"size": [96, 64], "dtype": dtype, "layout": layout}
    if dtype == "float32":
        config |= {"range": [0, 255]}
    colours = tensor_of(stage, astronaut, **config).astype(np.float64)

    grey = tensor_of(stage, astronaut, channels="grey", **config)

    assert grey.shape == ((1, 1, 64, 96) if layout == "nchw" else (1, 64, 96, 1))
    assert grey.dtype == dtype
    red, green, blue = np.moveaxis(colours[0], 0 if layout == "nchw" else -1, 0)
    np.testing.assert_allclose(grey.reshape(64, 96), 0.299 * red + 0.587 * green + 0.114 * blue, atol=1)


def test_a_grey_picture_is_normalised_with_one_mean_and_padded() -> None:
    tensor = tensor_of(Letterbox, solid(50, 100, 51, 51, 51), size=40, channels="grey", mean=0.1, std=0.5, pad=255)

    np.testing.assert_allclose(tensor[0, 0, 20], 0.2, atol=1e-6)
    np.testing.assert_allclose(tensor[0, 0, 0], 1.8, atol=1e-6)


def test_a_letterboxed_picture_keeps_its_shape_between_grey_bars() -> None:
    tensor = tensor_of(Letterbox, solid(50, 100, 255, 255, 255), size=40, pad=0)

    filled = tensor[0, 0] == 1
    assert filled.sum() == 20 * 40
    assert filled[10:30].all()


def test_a_letterboxed_picture_may_be_aligned_top_left() -> None:
    """YOLOX is trained with this alignment."""
    tensor = tensor_of(Letterbox, solid(100, 50, 255, 255, 255), size=40, align="top-left", range=[0, 255])

    assert (tensor[0, :, :, :20] == 255).all()
    assert (tensor[0, :, :, 20:] == 114).all()


def test_the_picture_stays_in_the_frame(astronaut: Picture) -> None:
    run = run_stage(Letterbox, [frame(astronaut)], size=64)

    assert run.out[0].array is astronaut


def test_a_fine_grid_shrinks_to_grey() -> None:
    """Every other pixel is white: a scaler that skips pixels would return all white or all black."""
    grid = np.zeros((400, 400, 3), np.uint8)
    grid[::2, ::2] = grid[1::2, 1::2] = 255

    tensor = tensor_of(Resize, grid, size=47, range=[0, 255])

    assert np.abs(tensor - 127.5).max() < 8


def test_without_opencv_the_picture_is_nearly_the_same(astronaut: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = tensor_of(Letterbox, astronaut, size=[150, 100], range=[0, 255])
    monkeypatch.setattr(pictures, "opencv", lambda: None)
    without = tensor_of(Letterbox, astronaut, size=[150, 100], range=[0, 255])

    assert np.abs(with_it - without).mean() < 3


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_not_a_picture_is_dead_lettered(array: NDArray[Any]) -> None:
    assert run_stage(Resize, [frame(array)], size=8).dead == {"not-a-picture": 1}


def test_an_undecoded_frame_is_dead_lettered() -> None:
    assert run_stage(Resize, [frame(b"\xff\xd8")], size=8).dead == {"not-decoded": 1}


@pytest.mark.parametrize(
    "config",
    [
        {"std": 0},
        {"dtype": "uint8", "mean": 0.5},
        {"size": [0, 5]},
        {"szie": 5},
        {"channels": "grey", "mean": [0.1, 0.2, 0.3]},
    ],
)
def test_invalid_resize_settings_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(HedgerowError):
        run_stage(Resize, [], **{"size": 8, **config})


sides = st.integers(1, 3000)
fractions = st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5)


@given(sides, sides, sides, sides, st.booleans(), fractions)
def test_boxes_survive_the_round_trip_to_the_input(
    width: int, height: int, input_width: int, input_height: int, centred: bool, boxes: list[Any]
) -> None:
    fit = Fit.inside((width, height), input_width, input_height, centred=centred)
    original = np.array(boxes, np.float64).reshape(-1, 4)

    back = fit.to_picture(fit.to_input(original))

    np.testing.assert_allclose(back, original, atol=1e-9)


@given(sides, sides, sides, sides)
def test_a_picture_fits_inside_and_touches_two_edges(
    width: int, height: int, input_width: int, input_height: int
) -> None:
    fit = Fit.inside((width, height), input_width, input_height)

    assert fit.left >= 0
    assert fit.top >= 0
    assert fit.left + fit.width <= input_width
    assert fit.top + fit.height <= input_height
    assert fit.width == input_width or fit.height == input_height

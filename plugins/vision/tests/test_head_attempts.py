"""Heads as exporters write them: read as an independent decoder reads them, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from plugins.vision.tests.head_models import (
    Scene,
    Tensor,
    cells,
    chain_of,
    final,
    first,
    last,
    logits,
    model,
    names,
    plain,
    props,
    reference,
    run,
    same,
    scene,
    softmax_logits,
    uncell,
    with_objectness,
)

from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.testing import frame
from hedgerow_vision.detection.detections import MOST_CANDIDATES

N = len(cells((128, 128)))  # 336
FEW, MANY = scene(N, 8), scene(N, 365)
WIDE = scene(len(cells((192, 96))), 3, (192, 96))
ANCHORS = scene(3 * N, 8)
ONE = scene(3 * N, 1)
FINE = scene(len(cells((128, 128), (4, 8, 16, 32))), 8)
SQUARE = scene(84, 80, 64, 2)
DENSE = scene(len(cells((256, 256))), 4, 256)
QUERIES = scene(100, 8)
SURE = QUERIES._replace(scores=np.where(QUERIES.scores < 0.5, QUERIES.scores / 100, QUERIES.scores))
POINTS = np.random.default_rng(1).random((N, 51)).astype(np.float32) * 128
MASKS = np.random.default_rng(2).standard_normal((N, 32)).astype(np.float32)
PROTO = np.zeros((1, 32, 32, 32), np.float32)


class Attempt(NamedTuple):
    """A head, and what is right: the scene's detections, by labels if the model or the configuration names them."""

    outputs: dict[str, Tensor]
    seen: Scene
    config: Mapping[str, Any] = MappingProxyType({})
    metadata: Mapping[str, str] = MappingProxyType({})
    stage: str = "yolo"
    suppress: bool = True
    objectness: float | None = None
    named: bool = True
    open_: tuple[int, ...] = ()


def yolo(rows: Tensor, seen: Scene, metadata: dict[str, str] | None = None, **more: Any) -> Attempt:
    return Attempt({"output0": rows}, seen, metadata=metadata or {}, **more)


TFLITE = {
    "detection_boxes": np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (1, 3, 1)),
    "detection_scores": np.float32([[0.9, 0, 0]]),
    "detection_classes": np.float32([[0, 0, 0]]),
}
DETR = {"boxes": "pred_boxes", "scores": "logits", "order": "cxcywh"}


def detr(scores: Tensor, seen: Scene, config: dict[str, Any], **more: Any) -> Attempt:
    boxes = (seen.boxes / (*seen.size, *seen.size))[None].astype(np.float32)
    return Attempt(
        {"pred_boxes": boxes, "logits": scores[None]}, seen, {**DETR, **config}, stage="boxes", suppress=False, **more
    )


READ: dict[str, Attempt] = {
    "v8 with metadata": yolo(first(plain(FEW)), FEW, props(8)),
    "v8 with labels": yolo(first(plain(FEW)), FEW, config={"labels": names(8)}),
    "v8 without any label": yolo(first(plain(FEW)), FEW, named=False),
    "v8 of 365 classes at 128 px": yolo(first(plain(MANY)), MANY, named=False),
    "v8 of 365 classes at 128 px, transposed": yolo(last(plain(MANY)), MANY, props(365)),
    "v8 transposed, with labels": yolo(last(plain(FEW)), FEW, config={"labels": names(8)}),
    "v8 transposed, stated": yolo(last(plain(FEW)), FEW, config={"objectness": False}, named=False),
    "v8 of a wide picture": yolo(first(plain(WIDE)), WIDE, props(3)),
    "v8 of open size": yolo(first(plain(FEW)), FEW, props(8), open_=(1, 2)),
    "v8 in half precision": yolo(first(plain(FEW)).astype(np.float16), FEW, props(8)),
    "v8 in fractions": yolo(
        first(plain(FEW._replace(boxes=FEW.boxes / 128))), FEW, props(8), config={"unit": "fraction"}
    ),
    "v8 as square as its classes are many": yolo(first(plain(SQUARE)), SQUARE, named=False),
    "v8 with a fourth grid": yolo(first(plain(FINE)), FINE, props(8)),
    "segmentation, by its metadata": Attempt(
        {"output0": first(plain(FEW, MASKS)), "output1": PROTO}, FEW, metadata=props(8, "segment")
    ),
    "segmentation, by its prototypes": Attempt(
        {"output0": first(plain(FEW, MASKS)), "output1": PROTO}, FEW, named=False
    ),
    "segmentation, by labels": yolo(first(plain(FEW, MASKS)), FEW, props(8, "segment")),
    "segmentation of v5": Attempt(
        {"output0": last(np.concatenate([with_objectness(ANCHORS), np.tile(MASKS, (3, 1))], 1)), "output1": PROTO},
        ANCHORS, config={"labels": names(8)}, objectness=0.95,
    ),
    "pose": yolo(
        first(plain(scene(N, 1), POINTS)), scene(N, 1), props(1, "pose", kpt_shape="[17, 3]")
    ),
    "v5 with labels": yolo(last(with_objectness(ANCHORS)), ANCHORS, config={"labels": names(8)}, objectness=0.95),
    "v5 without labels": yolo(last(with_objectness(ANCHORS)), ANCHORS, objectness=0.95, named=False),
    "v5 of one class": yolo(last(with_objectness(ONE)), ONE, objectness=0.95, named=False),
    "v5 transposed": yolo(first(with_objectness(ANCHORS)), ANCHORS, objectness=0.95, named=False),
    "v5 with names only": yolo(
        last(with_objectness(ANCHORS)), ANCHORS, {"names": str(names(8)), "stride": "32"}, objectness=0.95
    ),
    "YOLOX, decoded": yolo(
        last(with_objectness(FEW)), FEW, config={"objectness": True}, objectness=0.95, named=False
    ),
    "YOLOX, not decoded": yolo(
        last(with_objectness(uncell(FEW))), FEW,
        config={"objectness": True, "strides": [8, 16, 32], "labels": names(8)}, objectness=0.95,
    ),
    "end-to-end, by metadata": yolo(final(FEW), FEW, props(8, end2end="True")),
    "end-to-end, by shape": yolo(final(FEW), FEW, named=False),
    "end-to-end of two classes": yolo(final(scene(N, 2)), scene(N, 2), config={"labels": names(2)}),
    "end-to-end of ten rows": yolo(final(FEW, 10), FEW, props(8)),
    "end-to-end, filled with -1": yolo(
        np.where(final(FEW).any(axis=2, keepdims=True), final(FEW), np.float32(-1)), FEW, named=False
    ),
    "end-to-end of open length": yolo(final(FEW), FEW, props(8), open_=(1,)),
    "end-to-end with masks": Attempt(
        {"output0": final(FEW, 300, *[0.7] * 32), "output1": PROTO}, FEW, metadata=props(8, "segment", end2end="True")
    ),
    "RT-DETR of Ultralytics": yolo(
        last(plain(QUERIES._replace(boxes=QUERIES.boxes / 128))), QUERIES, props(8),
        config={"unit": "fraction", "max_iou": 1}, suppress=False,
    ),
    "DETR": detr(softmax_logits(SURE.scores), SURE, {"labels": names(8), "background": "last"}),
    "DETR with softmax stated": detr(
        softmax_logits(SURE.scores), SURE, {"labels": names(8), "activation": "softmax"}
    ),
    "DETR whose labels end with no object": detr(
        softmax_logits(SURE.scores), SURE, {"labels": [*names(8), "no-object"]}
    ),
    "RT-DETR": detr(logits(QUERIES.scores), QUERIES, {"labels": names(8)}),
    "RF-DETR whose first class has no name": detr(logits(QUERIES.scores), QUERIES, {"labels": ["???", *names(8)[1:]]}),
    "D-FINE with probabilities": detr(QUERIES.scores, QUERIES, {"labels": names(8)}),
    "RF-DETR without labels": detr(logits(QUERIES.scores), QUERIES, {"activation": "sigmoid"}, named=False),
    "D-FINE with three outputs": Attempt(
        {
            "labels": final(FEW)[:, :, 5].astype(np.int64), "boxes": final(FEW)[:, :, :4], "scores": final(FEW)[:, :, 4],
        },
        FEW,
        {
            "boxes": "boxes", "scores": "scores", "classes": "labels", "order": "xyxy", "unit": "pixel",
            "labels": names(8),
        },
        stage="boxes",
    ),
    "dense boxes and scores of YOLOv3": Attempt(
        {"boxes": (DENSE.boxes / 256).astype(np.float32), "classes": DENSE.scores},
        DENSE, {"boxes": "boxes", "scores": "classes", "order": "cxcywh", "labels": names(4)}, stage="boxes",
    ),
    "suppression in the graph": Attempt(  # EfficientNMS_TRT: unused rows are of class -1
        {
            "det_boxes": final(FEW, 100)[:, :, :4],
            "det_scores": final(FEW, 100)[:, :, 4],
            "det_classes": np.where(final(FEW, 100)[:, :, 4] > 0, final(FEW, 100)[:, :, 5], -1).astype(np.int32),
        },
        FEW,
        {
            "boxes": "det_boxes", "scores": "det_scores", "classes": "det_classes", "order": "xyxy", "unit": "pixel",
            "labels": names(8),
        },
        stage="boxes",
    ),
    "YOLO-NAS": Attempt(
        {
            "boxes": np.concatenate([FEW.boxes[:, :2] - FEW.boxes[:, 2:] / 2, FEW.boxes[:, :2] + FEW.boxes[:, 2:] / 2], 1)[None],
            "scores": FEW.scores[None],
        },
        FEW,
        {"boxes": "boxes", "scores": "scores", "order": "xyxy", "unit": "pixel", "labels": names(8)},
        stage="boxes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempt", READ.values(), ids=list(READ))
def test_a_head_is_read_as_its_definition_says(attempt: Attempt, tmp_path: Path) -> None:
    seen = attempt.seen
    path = model(tmp_path / "m.onnx", seen.size, attempt.outputs, attempt.open_, **attempt.metadata)
    objectness = None if attempt.objectness is None else np.full(len(seen.boxes), attempt.objectness)

    ran = run(path, seen.size, attempt.stage, **attempt.config)

    assert ran.dead == {}, ran.errors
    expected = reference(seen, suppress=attempt.suppress, objectness=objectness)
    assert len(expected) >= 2
    same(ran.results[0]["detections"], expected, names(seen.scores.shape[1]) if attempt.named else ())


def refused(outputs: dict[str, Tensor] | Tensor, said: str, stage: str = "yolo", **more: Any) -> Any:
    """A model that must be refused at start; `said`: what the error or its remedy names."""
    listed = outputs if isinstance(outputs, dict) else {"output0": outputs}
    return listed, said, stage, more


AT_START: dict[str, Any] = {
    "oriented boxes": refused(first(plain(FEW, POINTS[:, :1])), "obb", metadata=props(8, "obb")),
    "oriented boxes without metadata": refused(first(plain(FEW, POINTS[:, :1])), "13, 336", labels=names(8)),
    "oriented end-to-end boxes": refused(final(FEW, 300, 0.3), "obb", metadata=props(8, "obb", end2end="True")),
    "a classifier": refused(np.zeros((1, 1000), np.float32), "classify", metadata=props(8, "classify")),
    "a classifier without metadata": refused(np.zeros((1, 1000), np.float32), "2 dimensions"),
    "v8 with a label too few": refused(first(plain(FEW)), "7 labels", labels=names(7)),
    "v8 with a label too many": refused(first(plain(FEW)), "9 labels", labels=names(9)),
    "v8 transposed, without labels": refused(last(plain(FEW)), "objectness"),
    "v5 with a label too many": refused(last(with_objectness(ANCHORS)), "9 labels", labels=names(9)),
    "YOLOX, not stated": refused(last(with_objectness(FEW)), "objectness"),
    "YOLOX, not stated, with labels": refused(last(with_objectness(FEW)), "objectness", labels=names(8)),
    "YOLOX with wrong strides": refused(
        last(with_objectness(FEW)), "strides", objectness=True, strides=[8, 16], labels=names(8)
    ),
    "v8, stated as end-to-end": refused(first(plain(FEW)), "N, 6", end_to_end=True),
    "end-to-end, stated as dense": refused(final(FEW), "300, 6", end_to_end=False),
    "end-to-end with a batch index": refused(final(FEW, 300, 0.5)[0], "2 dimensions"),
    "a pose without its points": refused(first(plain(scene(N, 1), POINTS)), "56, 336", labels=names(1)),
    "a map of features": refused(np.zeros((1, 255, 16, 16), np.float32), "4 dimensions"),
    "boxes of unknown number without labels": refused(first(plain(scene(500, 8))), "336"),
    "`only` without the model's name": refused(first(plain(FEW)), "car", metadata=props(8), only=["car"]),
    "DETR without labels": refused(
        {"pred_boxes": QUERIES.boxes[None], "logits": logits(QUERIES.scores)[None]}, "activation", "boxes", **DETR
    ),
    "DETR with labels for other classes": refused(
        {"pred_boxes": QUERIES.boxes[None], "logits": logits(QUERIES.scores)[None]}, "5 labels", "boxes",
        **DETR, labels=names(5),
    ),
    "DETR, not stated, or RF-DETR with a label too few": refused(
        {"pred_boxes": QUERIES.boxes[None], "logits": logits(QUERIES.scores)[None]}, "background: last", "boxes",
        **DETR, labels=names(7),
    ),
    "DETR without an order": refused(
        {"pred_boxes": QUERIES.boxes[None], "logits": logits(QUERIES.scores)[None]}, "cxcywh", "boxes",
        boxes="pred_boxes", scores="logits", labels=names(8),
    ),
    "rotated boxes in `boxes`": refused(
        {"pred_boxes": np.zeros((1, 9, 5), np.float32), "logits": np.zeros((1, 9, 8), np.float32)}, "5 values", "boxes",
        **DETR, labels=names(8),
    ),
    "one score a box, and no classes": refused(
        {"boxes": np.zeros((1, 9, 4), np.float32), "scores": np.zeros((1, 9), np.float32)}, "detection_classes", "boxes",
        boxes="boxes", scores="scores",
    ),
    "eight bits": refused(np.zeros((1, 12, N), np.uint8), "uint8", labels=names(8)),
    "eight bits with a sign": refused(np.full((1, 12, N), -128, np.int8), "int8", labels=names(8)),
    "final detections in integers": refused(final(FEW).astype(np.int32), "int32", labels=names(8)),
    "scores in eight bits": refused({**TFLITE, "detection_scores": np.uint8([[229, 0, 0]])}, "uint8", "boxes", labels=names(2)),
    "TensorFlow's label for no object": refused(TFLITE, "'???'", "boxes", labels=["???", "person", "bicycle"]),
    "a background that TFLite does not count": refused(TFLITE, "background", "boxes", labels=["background", "person"]),
    "a background that is not stated": refused(
        {"boxes": np.zeros((1, 1, 4), np.float32), "scores": np.float32([[[5, -5, -4]]])}, "background: true", "ssd",
        anchors={"size": 128, "strides": [128], "between": False}, labels=["background", "person", "bicycle"],
    ),
    "SSD with a label too few": refused(
        {"boxes": np.zeros((1, 1, 4), np.float32), "scores": np.zeros((1, 1, 3), np.float32)}, "2 labels", "ssd",
        anchors={"size": 128, "strides": [128], "between": False}, labels=names(2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempt", AT_START.values(), ids=list(AT_START))
def test_a_head_that_is_not_sure_is_refused_at_start(attempt: Any, tmp_path: Path) -> None:
    outputs, said, stage, more = attempt
    metadata = more.get("metadata", {})
    path = model(tmp_path / "m.onnx", (128, 128), outputs, **metadata)

    with pytest.raises(HedgerowError) as refusal:
        run(path, (128, 128), stage, **{key: value for key, value in more.items() if key != "metadata"})

    assert said in refusal.value.explain()


def changed(rows: Tensor, column: int, value: float) -> Tensor:
    """One box, one value."""
    rows = rows.copy()
    rows[0, column] = value
    return rows


WRONG_VALUES: dict[str, Any] = {
    "a score of 20": refused(first(changed(plain(FEW), 5, 20)), "20"),
    "a score below 0": refused(first(changed(plain(FEW), 5, -0.4)), "-0.4"),
    "a score of NaN": refused(first(changed(plain(FEW), 5, np.nan)), "nan"),
    "a box of NaN": refused(first(changed(changed(plain(FEW), 5, 0.9), 1, np.nan)), "NaN"),
    "a final box of infinity": refused(np.tile(np.float32([[10, 10, np.inf, 40, 0.9, 1]]), (1, 300, 1)), "NaN"),
    "logits": refused(first(plain(FEW._replace(scores=logits(np.clip(FEW.scores, 0.01, 1))))), "probabilities"),
    "an objectness of 3": refused(last(changed(with_objectness(ANCHORS), 4, 3)), "3", labels=names(8)),
    "oriented boxes without labels": refused(first(plain(FEW, POINTS[:, :1])), "probabilities"),
    "a pose without labels": refused(first(plain(FEW, POINTS)), "probabilities"),
    "fractions read as pixels": refused(first(plain(FEW._replace(boxes=FEW.boxes / 128))), "unit"),
    "pixels read as fractions": refused(first(plain(FEW)), "unit", unit="fraction"),
    "YOLOX without its strides": refused(
        last(with_objectness(uncell(FEW))), "strides", objectness=True, labels=names(8)
    ),
    "decoded YOLOX with strides": refused(
        last(with_objectness(FEW)), "strides", objectness=True, labels=names(8), strides=[8, 16, 32]
    ),
    "a class that no label names": refused(final(scene(N, 8)), "2 labels", labels=names(2)),
    "a class of 1.5": refused(np.tile(np.float32([[10, 10, 40, 40, 0.9, 1.5]]), (1, 300, 1)), "1.5"),
    "centre and size as corners": refused(np.tile(np.float32([[90, 90, 40, 40, 0.9, 1]]), (1, 300, 1)), "ends before"),
    "probabilities as logits": refused(
        {"pred_boxes": QUERIES.boxes[None] / 128, "logits": QUERIES.scores[None]}, "activation", "boxes",
        **DETR, labels=names(8), activation="sigmoid",
    ),
    "logits as probabilities": refused(
        {"pred_boxes": QUERIES.boxes[None] / 128, "logits": logits(QUERIES.scores)[None]}, "probabilities", "boxes",
        **DETR, labels=names(8), activation="none",
    ),
    "pixels in DETR": refused(
        {"pred_boxes": QUERIES.boxes[None], "logits": logits(QUERIES.scores)[None]}, "unit", "boxes",
        **DETR, labels=names(8),
    ),
    "probabilities in SSD": refused(
        {"boxes": np.zeros((1, 1, 4), np.float32), "scores": np.float32([[[0.2, 0.9]]])}, "activation", "ssd",
        anchors={"size": 128, "strides": [128], "between": False}, labels=names(2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempt", WRONG_VALUES.values(), ids=list(WRONG_VALUES))
def test_values_that_a_head_cannot_have_are_an_error(attempt: Any, tmp_path: Path) -> None:
    outputs, said, stage, config = attempt
    path = model(tmp_path / "m.onnx", (128, 128), outputs)

    ran = run(path, (128, 128), stage, **config)

    assert ran.dead == {"bad-tensor": 1}, ran.results
    assert said in ran.errors[0].explain()


@pytest.mark.parametrize("shape", [(1, 84, 0), (1, 0, 6), (1, 0, 84)])
def test_no_boxes_are_an_empty_list(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", (64, 64), {"output0": np.zeros(shape, np.float32)}, open_=(1, 2))

    assert run(path, (64, 64)).results == [{"detections": []}]


def test_unused_rows_are_no_detections_at_any_score(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", FEW.size, {"output0": final(FEW)})

    ran = run(path, FEW.size, min_score=0)

    same(ran.results[0]["detections"], reference(FEW))


def test_a_flood_of_candidates_is_bounded(tmp_path: Path) -> None:
    """Every box scores high enough; the best are found among as many as suppression compares. All took 17 s."""
    size = (640, 640)
    seen = scene(3 * len(cells(size)), 2, size)
    flood = last(with_objectness(seen._replace(scores=np.maximum(seen.scores, 0.55))))
    path = model(tmp_path / "m.onnx", size, {"output0": flood})

    ran = run(path, size, limit=6)

    assert len(seen.boxes) > MOST_CANDIDATES
    same(ran.results[0]["detections"], reference(seen, objectness=np.full(len(seen.boxes), 0.95)))


def test_the_points_of_a_pose_follow_its_box(tmp_path: Path) -> None:
    """Ultralytics writes x, y and visibility of each point, in pixels, after the classes."""
    rows = np.zeros((N, 5 + 6), np.float32)
    rows[7] = [64, 32, 40, 20, 0.9, 50, 30, 0.99, 80, 40, 0.1]
    path = model(tmp_path / "m.onnx", (128, 128), {"output0": first(rows)}, **props(1, "pose", kpt_shape="[2, 3]"))

    (found,) = run(path, (128, 128)).results[0]["detections"]

    np.testing.assert_allclose(found["points"], [[50 / 128, 30 / 128], [80 / 128, 40 / 128]], atol=1e-4)
    np.testing.assert_allclose(found["box"], [44 / 128, 22 / 128, 84 / 128, 42 / 128], atol=1e-4)


def test_a_swapped_version_brings_its_own_labels_and_head(tmp_path: Path) -> None:
    """A new version may list its classes in another order; one whose head is not sure must not be read as the old one."""
    head = {"output0": first(plain(FEW))}
    renamed = props(8) | {"names": str([f"new-{index}" for index in range(8)])}
    fewer = props(8) | {"names": str(names(7))}
    paths = [
        model(tmp_path / f"{number}.onnx", FEW.size, head, **metadata)
        for number, metadata in enumerate((props(8), renamed, fewer))
    ]
    pool = ModelPool(cores=1)
    configs = [ModelConfig(path=str(path), backend="onnxruntime") for path in paths]
    context = PipelineContext("test", {"m": configs[0]}, Path(), pool)
    chain = build_chain(list(chain_of("yolo", FEW.size).items()), context)
    (slot,) = context.models
    seen: list[set[str]] = []
    for config in (None, *configs[1:]):
        if config is not None:
            before = slot.promote(pool.open("m", config, Path(), None))
            assert before is not None
            before.close()
        (outcome,) = chain.run([frame(np.zeros((128, 128, 3), np.uint8))]).outcomes
        if outcome.error is None:
            seen.append({found["label"].split("-")[0] for found in outcome.results[0].result["detections"]})
    chain.close()
    context.release()
    pool.close()

    assert seen == [{"name"}, {"new"}]
    assert outcome.error is not None
    assert "7 labels" in str(outcome.error)


@pytest.mark.parametrize(
    ("labels", "config"),
    [(["__background__", "person"], {}), (["background", "person"], {"background": "first"}), (["???", "person"], {"background": "first"})],
)  # fmt: skip
def test_a_background_that_the_model_counts_keeps_its_label(
    labels: list[str], config: dict[str, Any], tmp_path: Path
) -> None:
    """Torchvision's detectors: classes begin at 1, and boxes have no batch axis."""
    outputs = {"boxes": np.float32([[16, 16, 64, 64]]), "scores": np.float32([0.9]), "labels": np.int64([1])}
    path = model(tmp_path / "m.onnx", (128, 128), outputs)

    (result,) = run(
        path, (128, 128), "boxes", boxes="boxes", scores="scores", classes="labels", order="xyxy", unit="pixel",
        labels=labels, **config,
    ).results  # fmt: skip

    assert [(found["label"], found["box"]) for found in result["detections"]] == [("person", [0.125, 0.125, 0.5, 0.5])]


def test_a_background_that_comes_first_is_not_found(tmp_path: Path) -> None:
    scores = np.float32([[[0.9, 0.05, 0.05], [0.1, 0.1, 0.8]]])
    boxes = np.float32([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]])
    path = model(tmp_path / "m.onnx", (128, 128), {"pred_boxes": boxes, "logits": scores})

    (result,) = run(path, (128, 128), "boxes", **DETR, labels=["background", "person", "car"]).results

    assert [found["label"] for found in result["detections"]] == ["car"]

"""Small models with the heads of well-known detectors, and an independent decoder to compare with.

No installable package ships such models, so each is an ONNX file that returns chosen tensors. `reference` is written from
the definitions, box by box, without the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from hedgerow import Stage
from hedgerow.plugins import configure
from hedgerow.stages.infer import Infer
from hedgerow.testing import PipelineRun, frame, run_pipeline
from hedgerow_vision.detection.boxes import Boxes
from hedgerow_vision.detection.ssd import Ssd
from hedgerow_vision.detection.yolo import Yolo
from hedgerow_vision.images.resize import Resize

Tensor = NDArray[Any]
Found = dict[str, Any]


class Scene(NamedTuple):
    """Boxes of a model before it is written in some layout.

    Attributes:
        boxes: (N, 4), centre and size, pixels of the input.
        scores: (N, C), 0..1.
    """

    boxes: Tensor
    scores: Tensor
    size: tuple[int, int]


def cells(size: tuple[int, int], strides: Sequence[int] = (8, 16, 32)) -> list[tuple[int, int, int]]:
    """Column, row and stride of each cell, in the order in which heads list them."""
    return [(x, y, s) for s in strides for y in range(size[1] // s) for x in range(size[0] // s)]


def scene(count: int, classes: int, size: tuple[int, int] | int = 128, objects: int = 6) -> Scene:
    """Objects that do not overlap, each found by three boxes, among boxes that score low."""
    size = (size, size) if isinstance(size, int) else size
    random = np.random.default_rng([count, classes, *size])
    boxes = np.concatenate([random.random((count, 2)) * size, 4 + random.random((count, 2)) * 30], axis=1)
    scores = random.random((count, classes)) * 0.3
    places = random.permutation(count)[: objects * 3].reshape(-1, 3)
    for number, rows in enumerate(places):
        kind, best = int(random.integers(classes)), 0.6 + 0.3 * random.random()
        x, y = 16 + 32 * (number % 3), 20 + 40 * (number // 3)
        for shift, row in enumerate(rows):
            boxes[row] = (x + shift, y, 24, 30)
            scores[row, kind] = best - 0.03 * shift
    return Scene(boxes.astype(np.float32), scores.astype(np.float32), size)


def reference(seen: Scene, *, suppress: bool = True, objectness: Tensor | None = None) -> list[Found]:
    """Decode and suppress box by box, as the papers define it."""
    found = []
    for row, (x, y, w, h) in enumerate(seen.boxes.tolist()):
        kind = max(range(seen.scores.shape[1]), key=lambda c: seen.scores[row, c])
        score = float(seen.scores[row, kind]) * (1 if objectness is None else float(objectness[row]))
        if score >= 0.5:
            found.append((score, kind, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    found.sort(key=lambda one: -one[0])
    kept: list[Any] = []
    for one in found:
        if not suppress or all(one[1] != other[1] or iou(one[2], other[2]) <= 0.5 for other in kept):
            kept.append(one)
    sides = (*seen.size, *seen.size)
    return [
        {
            "label": str(kind),
            "score": score,
            "box": [min(1, max(0, v / side)) for v, side in zip(box, sides, strict=True)],
        }
        for score, kind, box in kept
    ]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, wide) * max(0, high)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def same(seen: Sequence[Found], expected: Sequence[Found], names: Sequence[str] = ()) -> None:
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        label = other["label"]
        assert one["label"] == (names[int(label)] if names else label)
        assert one["score"] == pytest.approx(other["score"], abs=2e-3)
        np.testing.assert_allclose(one["box"], other["box"], atol=2e-3)


def model(
    path: Path, size: tuple[int, int], outputs: Mapping[str, Tensor], open_: Sequence[int] = (), **metadata: str
) -> Path:
    """Write a model that returns these tensors, whatever the picture; `open_`: axes whose size the file does not say."""
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size[1], size[0]])
    nodes, infos = [], []
    for name, array in outputs.items():
        nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        dims = [f"d{axis}" if axis in open_ else side for axis, side in enumerate(array.shape)]
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
    made = helper.make_model(
        helper.make_graph(nodes, "g", [picture], infos), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 9
    helper.set_model_props(made, metadata)
    save(made, path)
    return path


STAGES: dict[str, type[Stage[Any]]] = {"yolo": Yolo, "boxes": Boxes, "ssd": Ssd}


def chain_of(stage: str, size: tuple[int, int], **config: Any) -> dict[str, Stage[Any]]:
    # Made here, since to look a stage up by its name takes longer than all the rest.
    return {
        "resize": configure(Resize, {"size": list(size), "tensor": "images"}, "resize"),
        "infer": configure(Infer, {"model": "m"}, "infer"),
        stage: configure(STAGES[stage], config, stage),
    }


def run(path: Path, size: tuple[int, int], stage: str = "yolo", **config: Any) -> PipelineRun:
    picture = frame(np.zeros((size[1], size[0], 3), np.uint8))
    stages = list(chain_of(stage, size, **config).values())
    return run_pipeline(stages, [picture], models={"m": {"path": str(path), "backend": "onnxruntime"}})


def plain(seen: Scene, *more: Tensor) -> Tensor:
    return np.concatenate([seen.boxes, seen.scores, *more], axis=1)


def with_objectness(seen: Scene, objectness: float = 0.95) -> Tensor:
    column = np.full((len(seen.boxes), 1), objectness, np.float32)
    return np.concatenate([seen.boxes, column, seen.scores], axis=1)


def first(rows: Tensor) -> Tensor:
    """(1, values, N)."""
    return np.ascontiguousarray(rows.T[None].astype(np.float32))


def last(rows: Tensor) -> Tensor:
    """(1, N, values)."""
    return rows[None].astype(np.float32)


def final(seen: Scene, count: int = 300, *more: float) -> Tensor:
    """(1, count, 6): x0, y0, x1, y1, score, class; unused rows are zero."""
    rows = np.zeros((count, 6 + len(more)), np.float32)
    for number, one in enumerate(reference(seen)):
        rows[number] = [*(np.array(one["box"]) * [*seen.size, *seen.size]), one["score"], int(one["label"]), *more]
    return rows[None]


def uncell(seen: Scene) -> Scene:
    """Boxes relative to their cells, as YOLOX returns them without decoding."""
    where = np.array(cells(seen.size))
    boxes = np.concatenate(
        [seen.boxes[:, :2] / where[:, 2:] - where[:, :2], np.log(seen.boxes[:, 2:] / where[:, 2:])], axis=1
    )
    return seen._replace(boxes=boxes)


def logits(p: Tensor) -> Tensor:
    return np.log(p / (1 - p)).astype(np.float32)


def softmax_logits(scores: Tensor) -> Tensor:
    """Logits whose softmax has these scores, and the rest for a last class of no object."""
    return np.log(np.concatenate([scores, 1 - scores.sum(axis=1, keepdims=True)], axis=1)).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"name-{index}" for index in range(count)]


def props(count: int, task: str = "detect", **more: str) -> dict[str, str]:
    """Metadata as Ultralytics writes it."""
    listed = dict(enumerate(names(count)))
    return {"names": str(listed), "task": task, "stride": "32", "imgsz": "[128, 128]", **more}

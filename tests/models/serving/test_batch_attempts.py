"""Attempts to make frames of several cameras change each other: small models of the kinds that exporters produce.

Each says whether its frames may share a batch, written down before it was run. Whatever the node decides, every frame's
outputs must be those of the vendor's library running that frame alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import openvino
import pytest

from hedgerow.config import ModelConfig
from hedgerow.errors import ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.serving.pool import ModelPool

BATCHED, ALONE, REFUSED = "batched", "alone", "refused"
BOTH = ("onnxruntime", "openvino")
ORT = ("onnxruntime",)


@dataclass(frozen=True)
class Attempt:
    """A model, and whether it may be batched.

    Attributes:
        name: what it does, or why it is tried.
        expected: batched, alone, or refused unless a request has all rows that the model is fixed to.
        body: its graph as text.
        shapes: shape of one frame, by input.
        backends: backends that can run it.
        top: frames have values from 0 to this.
        extra: functions of the model, as text.
        why: part of the stated reason.
    """

    name: str
    expected: str
    body: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (1, 3)})
    backends: tuple[str, ...] = BOTH
    config: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    top: float = 1.0
    dtype: Any = np.float32
    extra: str = ""
    domains: str = ""
    why: str = ""
    exact: bool = True


IMAGE = {"x": (1, 3, 8, 8)}
BOXES = {"boxes": (1, 6, 4), "scores": (1, 1, 6)}

ATTEMPTS = [
    # --- rightly batched ---
    Attempt("arithmetic", BATCHED, "(float[N,3] x) => (float[N,3] y) { y = Mul(x, x) }"),
    Attempt(
        "a view that asks the batch for its size, as torch exports it",
        BATCHED,
        """(float[N,3,8,8] x) => (float[N,192] y) <int64[1] zero = {0}, int64[1] rest = {-1}>
        { s = Shape(x) n = Gather(s, zero) shape = Concat<axis=0>(n, rest) y = Reshape(x, shape) }""",
        IMAGE,
    ),
    Attempt(
        "a convolution, a pool and a reshape to (0, -1)",
        BATCHED,
        """(float[N,3,8,8] x) => (float[N,2] y) <float[2,3,1,1] w = {1, 2, 3, -1, 0.5, 2}, int64[2] flat = {0, -1}>
        { c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) y = Reshape(p, flat) }""",
        IMAGE,
    ),
    Attempt("softmax over classes", BATCHED, "(float[N,3] x) => (float[N,3] y) { y = Softmax<axis=-1>(x) }", top=9),
    Attempt(
        "best class as an integer per frame",
        BATCHED,
        "(float[N,9] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }",
        {"x": (1, 9)},
    ),
    Attempt(
        "top 2 of each frame, as DETR heads",
        BATCHED,
        """(float[N,9] x) => (float[N,2] v, int64[N,2] i) <int64[1] k = {2}> { v, i = TopK<axis=1>(x, k) }""",
        {"x": (1, 9)},
    ),
    Attempt(
        "boxes gathered by each frame's own best scores, as end-to-end exports",
        BATCHED,
        """(float[N,6,4] boxes, float[N,1,6] scores) => (float[N,3,4] y)
        <int64[1] k = {3}, int64[1] one = {1}, int64[4] tile = {1, 1, 1, 4}, int64[1] last = {-1}, int64[3] reps = {1, 1, 4}>
        { flat = Squeeze(scores, one) v, i = TopK<axis=1>(flat, k) j = Unsqueeze(i, last) e = Tile(j, reps)
          y = GatherElements<axis=1>(boxes, e) }""",
        BOXES,
    ),
    Attempt(
        "instance normalisation",
        BATCHED,
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 0, 1}>
        { y = InstanceNormalization(x, s, b) }""",
        IMAGE,
    ),
    Attempt(
        "batch normalisation with learned statistics",
        BATCHED,
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 0, 1}, float[3] v = {1, 1, 2}>
        { y = BatchNormalization(x, s, b, b, v) }""",
        IMAGE,
    ),
    Attempt(
        "layer normalisation",
        BATCHED,
        "(float[N,3] x) => (float[N,3] y) <float[3] s = {1, 2, 3}> { y = LayerNormalization(x, s) }",
    ),
    Attempt(
        "attention within a frame",
        BATCHED,
        """(float[N,4,5] x) => (float[N,4,5] y)
        { t = Transpose<perm=[0,2,1]>(x) a = MatMul(x, t) w = Softmax<axis=-1>(a) y = MatMul(w, x) }""",
        {"x": (1, 4, 5)},
    ),
    Attempt(
        "a batch on axis 1, as configured",
        BATCHED,
        "(float[2,N,3] x) => (float[3,N] y) { r = ReduceMean<axes=[0], keepdims=0>(x) y = Transpose<perm=[1,0]>(r) }",
        {"x": (2, 1, 3)},
        config={"batch_axis": {"x": 1, "y": 1}},
    ),
    Attempt(
        "a recurrent model with its state on axis 1",
        BATCHED,
        """(float[1,N,2] x, float[1,N,2] h) => (float[1,1,N,2] y, float[1,N,2] g)
        <float[1,2,2] w = {0.5, 1, -1, 0.25}, float[1,2,2] r = {0.1, 0.2, 0.3, 0.4}>
        { y, g = RNN<hidden_size=2>(x, w, r, , , h) }""",
        {"x": (1, 1, 2), "h": (1, 1, 2)},
        config={"batch_axis": {"x": 1, "h": 1, "y": 2, "g": 1}, "state": {"h": "g"}},
    ),
    Attempt(
        "a branch chosen by a constant, as voice detectors choose the rate",
        BATCHED,
        """(float[N,3] x, int64 sr) => (float[N,3] y) <int64 rate = {16000}>
        { fast = Equal(sr, rate) y = If(fast) <
            then_branch = fast_graph () => (float[N,3] a) { a = Mul(x, x) },
            else_branch = slow_graph () => (float[N,3] b) { b = Neg(x) }> }""",
        config={"constants": {"sr": 16000}},
    ),
    Attempt(
        "a threshold given with each request",
        BATCHED,
        "(float[N,3] x, float t) => (float[N,3] y) { y = Sub(x, t) }",
        {"x": (1, 3), "t": ()},
    ),
    Attempt(
        "frames of any width",
        BATCHED,
        "(float[N,W] x) => (float[N,1] y) { y = ReduceMean<axes=[1]>(x) }",
        {"x": (1, 5)},
    ),
    Attempt(
        "half precision",
        BATCHED,
        "(float16[N,3] x) => (float16[N,3] y) { y = Sigmoid(x) }",
        dtype=np.float16,
        exact=False,
    ),
    Attempt(
        "bytes in, as quantised models",
        BATCHED,
        "(uint8[N,3] x) => (float[N,3] y) { f = Cast<to=1>(x) y = Sqrt(f) }",
        dtype=np.uint8,
        top=200,
    ),
    Attempt(
        "a picture enlarged by a constant factor",
        BATCHED,
        """(float[N,1,4,4] x) => (float[N,1,8,8] y) <float[4] f = {1, 1, 2, 2}> { y = Resize<mode="nearest">(x, , f) }""",
        {"x": (1, 1, 4, 4)},
    ),
    Attempt(
        "a local function",
        BATCHED,
        "(float[N,3] x) => (float[N,3] y) { y = own.twice(x) }",
        extra='<opset_import: ["": 17], domain: "own"> twice (a) => (b) { b = Add(a, a) }',
        domains=', "own": 1',
        backends=ORT,
    ),
    Attempt(
        "a classifier of tables, with label and probabilities",
        BATCHED,
        """(float[N,3] x) => (int64[N] label, float[N,2] p)
        { label, p = ai.onnx.ml.LinearClassifier<classlabels_ints=[0,1], coefficients=[1.0,-2.0,0.5,-1.0,2.0,-0.5],
          intercepts=[0.1,-0.1], post_transform="SOFTMAX">(x) }""",
        domains=', "ai.onnx.ml": 3',
        backends=ORT,
    ),
    Attempt(
        "fixed to four frames",
        BATCHED,
        "(float[4,3] x) => (float[4,3] y) { y = Mul(x, x) }",
    ),
    # --- never batched ---
    Attempt(
        "non-maximum suppression, whose rows name the place in the batch",
        ALONE,
        """(float[N,6,4] boxes, float[N,1,6] scores) => (int64[M,3] y)
        <int64 most = {2}, float iou = {0.5}, float least = {0.5}>
        { y = NonMaxSuppression(boxes, scores, most, iou, least) }""",
        BOXES,
        why="NonMaxSuppression",
    ),
    Attempt(
        "YOLOv7's end-to-end rows, which claim to be one for each frame",
        ALONE,
        """(float[N,6,4] boxes, float[N,1,6] scores) => (float[N,3] output)
        <int64 most = {1}, float iou = {0.5}, float least = {0.1}>
        { i = NonMaxSuppression(boxes, scores, most, iou, least) output = Cast<to=1>(i) }""",
        BOXES,
        why="NonMaxSuppression",
    ),
    Attempt(
        "rows of all positive values",
        ALONE,
        "(float[N,3] x) => (int64[M,2] y) <float half = {0.5}> { b = Greater(x, half) i = NonZero(b) y = Transpose(i) }",
        why="NonZero",
    ),
    Attempt(
        "frames above a limit only",
        ALONE,
        """(float[N,3] x) => (float[M,3] y) <float half = {0.5}, int64[1] one = {1}>
        { m = ReduceMax<axes=[1], keepdims=0>(x) k = Greater(m, half) y = Compress<axis=0>(x, k) }""",
        backends=ORT,
        why="Compress",
    ),
    Attempt(
        "distinct values",
        ALONE,
        "(float[N,3] x) => (float[M] y) { y = Unique(x) }",
        why="Unique",
    ),
    Attempt(
        "as many rows as the first value says",
        ALONE,
        """(float[N,3] x) => (float[M] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] flat = {-1}>
        { f = Reshape(x, flat) v = Slice(f, zero, one) i = Cast<to=7>(v) k = Add(i, one) y = Expand(v, k) }""",
        top=4,
        backends=ORT,
        why="Expand",
    ),
    Attempt(
        "batch normalisation left in training mode",
        ALONE,
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 0, 1}, float[3] e = {0, 1, 0}, float[3] v = {1, 1, 2}>
        { y, m, w = BatchNormalization<training_mode=1>(x, s, b, e, v) }""",
        IMAGE,
        backends=ORT,
        why="other frames",
    ),
    Attempt(
        "normalisation over the batch by default axes",
        ALONE,
        "(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = MeanVarianceNormalization(x) }",
        IMAGE,
        why="other frames",
    ),
    Attempt("softmax over the batch", ALONE, "(float[N,3] x) => (float[N,3] y) { y = Softmax<axis=0>(x) }", top=9),
    Attempt(
        "a mean over the batch, weak beside pixel coordinates",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <float c = {600}, float weak = {0.01}>
        { m = ReduceMean<axes=[0]>(x) w = Mul(m, weak) p = Mul(x, c) y = Add(p, w) }""",
        why="other frames",
    ),
    Attempt(
        "scores beside coordinates, mixed in the scores only",
        ALONE,
        """(float[N,3] x) => (float[N,6] y) <float c = {600}>
        { p = Mul(x, c) m = ReduceMax<axes=[0]>(x) s = Add(x, m) y = Concat<axis=1>(p, s) }""",
        why="other frames",
    ),
    Attempt(
        "sorted over the batch",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64[1] zero = {0}>
        { s = Shape(x) k = Gather(s, zero) y, i = TopK<axis=0>(x, k) }""",
    ),
    Attempt(
        "a running total over the batch",
        ALONE,
        "(float[N,3] x) => (float[N,3] y) <int64 axis = {0}> { y = CumSum(x, axis) }",
        why="other frames",
    ),
    Attempt(
        "frames in reverse order",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64[1] s = {-1}, int64[1] e = {-1000}, int64[1] a = {0}, int64[1] d = {-1}>
        { y = Slice(x, s, e, a, d) }""",
        why="other frames",
    ),
    Attempt(
        "the first frame for all",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64[1] zero = {0}, int64[1] one = {1}>
        { f = Slice(x, zero, one) s = Shape(x) y = Expand(f, s) }""",
        why="other frames",
    ),
    Attempt(
        "the largest value of the batch as scale, as dynamic quantisation",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }""",
        why="other frames",
        backends=ORT,
    ),
    Attempt(
        "divided by the number of frames",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64[1] zero = {0}>
        { s = Shape(x) k = Gather(s, zero) f = Cast<to=1>(k) y = Div(x, f) }""",
        why="batch's size",
    ),
    Attempt(
        "the place in the batch added",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64 z = {0}, int64 o = {1}, int64[2] col = {-1, 1}>
        { s = Shape(x) n = Gather(s, z) r = Range(z, n, o) c = Reshape(r, col) f = Cast<to=1>(c) y = Add(x, f) }""",
        why="its place",
    ),
    Attempt(
        "a thousandth of the place in the batch",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64 z = {0}, int64 o = {1}, int64[2] col = {-1, 1}, float k = {0.004}>
        { s = Shape(x) n = Gather(s, z) r = Range(z, n, o) c = Reshape(r, col) f = Cast<to=1>(c) g = Mul(f, k)
          y = Add(x, g) }""",
        why="its place",
    ),
    Attempt(
        "different from four frames on",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64 z = {0}, int64 four = {4}>
        { s = Shape(x) n = Gather(s, z) b = Less(n, four) f = Cast<to=1>(b) y = Mul(x, f) }""",
        why="a batch of 5",
    ),
    Attempt(
        "two rows whatever the batch",
        ALONE,
        """(float[N,3] x) => (float[2,3] y)
        { m = ReduceMean<axes=[0]>(x) h = ReduceMax<axes=[0]>(x) y = Concat<axis=0>(m, h) }""",
        why="other frames",
    ),
    Attempt(
        "three rows whatever the batch",
        ALONE,
        """(float[N,3] x) => (float[3,3] y)
        { m = ReduceMean<axes=[0]>(x) h = ReduceMax<axes=[0]>(x) y = Concat<axis=0>(m, h, m) }""",
        why="not 2 rows",
    ),
    Attempt(
        "classes in rows, frames in columns, not configured",
        ALONE,
        "(float[N,3] x) => (float[3,N] y) { y = Transpose(x) }",
        why="not 2 rows on axis 0; if axis 1 counts frames, set `batch_axis`",
    ),
    Attempt(
        "all anchors of all frames in one list",
        ALONE,
        "(float[N,4,3] x) => (float[M,3] y) <int64[2] flat = {-1, 3}> { y = Reshape(x, flat) }",
        {"x": (1, 4, 3)},
        why="not 2 rows",
    ),
    Attempt(
        "one row too many",
        ALONE,
        "(float[N,3] x) => (float[M,3] y) <float[1,3] pad = {0, 0, 0}> { y = Concat<axis=0>(x, pad) }",
        why="not 2 rows",
    ),
    Attempt(
        "similarity of all frames",
        ALONE,
        "(float[N,3] x) => (float[N,M] y) { t = Transpose(x) y = MatMul(x, t) }",
    ),
    Attempt(
        "one of two outputs over the batch",
        ALONE,
        "(float[N,3] x) => (float[N,3] y, float[1,3] m) { y = Neg(x) m = ReduceMean<axes=[0]>(x) }",
        why="output m",
    ),
    Attempt(
        "a branch chosen by the brightness of the batch",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <float half = {0.5}>
        { m = ReduceMean<keepdims=0>(x) bright = Greater(m, half) y = If(bright) <
            then_branch = day () => (float[N,3] a) { a = Neg(x) },
            else_branch = night () => (float[N,3] b) { b = Mul(x, x) }> }""",
        why="If",
    ),
    Attempt(
        "bright batches scaled",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <float much = {50}, float k = {2}>
        { m = ReduceMean<keepdims=0>(x) bright = Greater(m, much) d = Mul(x, k) y = Where(bright, d, x) }""",
        top=90,
        why="other frames",
    ),
    Attempt(
        "rounds of a loop counted by the frames' values",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <int64 one = {1}, float start = {0}>
        { m = ReduceMax<keepdims=0>(x) i = Cast<to=7>(m) n = Add(i, one) c = Cast<to=9>(one) y = Loop(n, c, x) <
            body = rounds (int64 number, bool go, float[N,3] a) => (bool on, float[N,3] b) { on = Identity(go) b = Add(a, x) }> }""",
        top=4,
        why="Loop",
    ),
    Attempt(
        "noise added",
        ALONE,
        "(float[N,3] x) => (float[N,3] y) { r = RandomNormalLike(x) k = Mul(r, x) y = Sub(k, k) }",
        backends=ORT,
    ),
    Attempt(
        "other outputs at every run",
        ALONE,
        "(float[N,3] x) => (float[N,3] y) <float k = {1e-7}> { r = RandomNormalLike(x) s = Mul(r, k) y = Add(x, s) }",
        backends=ORT,
        why="from run to run",
    ),
    Attempt(
        "nothing shows on any trial frame",
        ALONE,
        """(float[N,3] x) => (float[N,3] y) <float never = {1e7}>
        { m = ReduceMax<axes=[0]>(x) b = Greater(m, never) f = Cast<to=1>(b) z = Sub(x, x) y = Add(z, f) }""",
        why="does not show",
    ),
    Attempt(
        "a reshape to one frame",
        ALONE,
        "(float[N,3] x) => (float[N,3] y) <int64[2] one = {1, 3}> { y = Reshape(x, one) }",
    ),
    Attempt(
        "all frames must have the same width as there are frames",
        ALONE,
        "(float[N,3] x) => (float[N,3] y) <float[1,3] k = {1, 2, 3}, int64[2] one = {1, 3}> "
        "{ r = Reshape(x, one) y = Mul(r, k) }",
    ),
    Attempt(
        "a batch opened although rows affect each other",
        ALONE,
        "(float[1,3] x) => (float[1,3] y) { m = ReduceMax<axes=[0]>(x) y = Sub(m, x) z = Identity(y) }",
        backends=("openvino",),
        config={"open_batch": True},
    ),
    Attempt(
        "fixed to four, normalised over the batch",
        ALONE,
        "(float[4,3] x) => (float[4,3] y) { m = ReduceMax<axes=[0]>(x) y = Add(m, x) }",
        why="other frames",
    ),
    # --- no frame has an answer of its own ---
    Attempt(
        "fixed to four, with seven rows",
        REFUSED,
        """(float[4,3] x) => (float[7,3] y)
        { m = ReduceMax<axes=[0]>(x) y = Concat<axis=0>(x, m, m, m) }""",
        why="not 4 rows",
    ),
    Attempt(
        "fixed to four, rows of all positive values",
        REFUSED,
        "(float[4,3] x) => (int64[M,2] y) <float half = {0.5}> { b = Greater(x, half) i = NonZero(b) y = Transpose(i) }",
        why="NonZero",
    ),
    Attempt(
        "fixed to four, whose rows count the batch",
        REFUSED,
        """(float[4,3] x) => (float[4,3] y) <float[4,1] c = {0, 1, 2, 3}> { y = Add(x, c) }""",
        why="its place",
    ),
]


@pytest.fixture
def pool() -> Iterator[ModelPool]:
    pool = ModelPool(cores=1)
    yield pool
    pool.close()


def write(attempt: Attempt, path: Path) -> Path:
    text = f'<ir_version: 8, opset_import: ["": {attempt.opset}{attempt.domains}]>\ngraph {attempt.body}'
    model = onnx.parser.parse_model(text + (f"\n{attempt.extra}" if attempt.extra else ""))
    onnx.save(model, path)
    return path


def frames(attempt: Attempt, count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(count)
    scalar = np.asarray(rng.random(), attempt.dtype)
    return [
        {
            name: (rng.random(shape) * attempt.top).astype(attempt.dtype) if shape else scalar
            for name, shape in attempt.shapes.items()
        }
        for _ in range(count)
    ]


def vendor(path: Path, backend: str) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Return a function that runs a batch with the vendor's library alone."""
    if backend == "onnxruntime":
        session = onnxruntime.InferenceSession(path)
        names = [one.name for one in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: {port.get_any_name(): np.array(array) for port, array in compiled(inputs).items()}


CASES = [pytest.param(one, backend, id=f"{one.name}-{backend}") for one in ATTEMPTS for backend in one.backends]


@pytest.mark.parametrize(("attempt", "backend"), CASES)
def test_every_frame_gets_the_outputs_it_has_alone(
    attempt: Attempt, backend: str, pool: ModelPool, tmp_path: Path
) -> None:
    path = write(attempt, tmp_path / "model.onnx")
    config = ModelConfig(path=str(path), backend=backend, max_batch=8, **attempt.config)  # type: ignore[arg-type] # a literal
    slot, run = pool.acquire("cameras", config, Path()), vendor(path, backend)
    info = slot.info()
    assert attempt.why in (info.unbatched or "")
    assert (info.max_batch > 1) == (attempt.expected == BATCHED)

    if attempt.expected == REFUSED:
        sent = frames(attempt, 4)
        assert all(isinstance(outcome, ModelMismatch) for outcome in slot.infer_each(sent))
        whole = {"x": np.concatenate([frame["x"] for frame in sent])}
        np.testing.assert_array_equal(slot.infer([whole])[0]["y"], run(whole)["y"])
        return
    fixed = 4 if "[4,3] x" in attempt.body else 1
    for count in (2, 3, 5):
        sent = frames(attempt, count)
        for frame, own in zip(sent, slot.infer_each(sent), strict=True):
            assert isinstance(own, dict), own
            copies = {name: np.repeat(array, fixed, 0) if array.ndim else array for name, array in frame.items()}
            alone = run({**copies, **{name: np.array(value) for name, value in config.constants.items()}})
            for name, array in own.items():
                expected = alone[name][:1] if fixed > 1 else alone[name]
                assert array.shape == expected.shape
                np.testing.assert_allclose(array, expected, rtol=1e-5 if attempt.exact else 1e-2, atol=1e-6)


def test_there_are_at_least_forty() -> None:
    assert len({one.name for one in ATTEMPTS}) == len(ATTEMPTS) >= 40


@pytest.mark.parametrize(
    "config",
    [
        {"path": "package:rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "backend": "onnxruntime"},
        {"path": "package:rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "backend": "openvino"},
        {
            "path": "package:silero_vad/data/silero_vad_16k_op15.onnx",
            "constants": {"sr": 16000},
            "state": {"state": "stateN"},
            "batch_axis": {"state": 1, "stateN": 1},
        },
        {
            "path": "package:silero_vad/data/silero_vad_openvino_16k.onnx",
            "backend": "openvino",
            "open_batch": True,
            "state": {"state": "stateN"},
            "batch_axis": {"state": 1, "stateN": 1},
        },
    ],
    ids=["convolutions", "convolutions on OpenVINO", "recurrent", "recurrent, opened"],
)
def test_real_models_are_batched(pool: ModelPool, config: dict[str, Any]) -> None:
    """Trials must not cost good models their batches."""
    info = pool.acquire("model", ModelConfig(**config), Path()).info()

    assert (info.max_batch, info.unbatched) == (16, None)

"""Eight bits: ONNX Runtime's quantiser, given what it needs, and held to what it costs.

Rules:
- Ranges of tensors are found by samples; without any they are found anew at each run (`dynamic`).
- Weights have a scale for each channel where the model lets them. That needs operators of version 13: older models are
  raised to it.
- Weights have seven bits: of eight, the sums overflow on processors without 8-bit dot products (AVX2), signed activations or
  not, and one file would give different numbers on different gateways.
- Often a few operators do nearly all the harm: first layers, whose values spread widest. If the whole costs more than a
  little, operators are tried in groups, each alone, and the groups that hurt most stay as they were.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow.backends.vendors import explained, onnx_package
from hedgerow.frame import Array

# What takes the time. Eight bits elsewhere cost accuracy and gain nothing.
_HEAVY: Final = ["Conv", "Gemm", "MatMul"]

_LITTLE: Final = 0.1
"""Root mean square of what it costs, over the deviation of the outputs, that is let be."""

_GROUPS: Final = 8
_PROBES: Final = 8
"""Samples by which the cost is found."""

_PER_CHANNEL: Final = 13
"""Operators' version that has a scale for each channel."""

Sample = Mapping[str, Array]


def to_int8(path: Path, out: Path, samples: Iterable[Sample], *, unsigned: bool = False) -> str:
    """Write an ONNX model whose convolutions and products are computed in eight bits.

    Args:
        samples: inputs of single runs; none: ranges are found anew at each run, which costs time there.
        unsigned: let activations go from 0 to 255. OpenVINO gives something else where they are signed.
    Returns: how it was done: `static, per channel`, `static, per tensor` or `dynamic`, and what was left as it was.
    Raises: ModelUnreadable: it cannot be quantised; BackendMissing: a package for that is missing.
    """
    samples = list(samples)
    onnx_package()
    with tempfile.TemporaryDirectory() as folder, explained(path, "int8"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        ready = _prepared(path, Path(folder))
        failed: Exception | None = None
        for per_channel in (True, False) if samples else ():
            try:
                left = _Static(ready, Path(folder), samples, per_channel=per_channel, unsigned=unsigned).write(out)
            except Exception as error:  # noqa: BLE001 - the next way may do
                failed = error
            else:
                return f"static, per {'channel' if per_channel else 'tensor'}{left}"
        try:
            quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8, reduce_range=True)
        except Exception as error:
            raise failed or error from error
        return "dynamic"


def _prepared(path: Path, folder: Path) -> Path:
    """The model with its shapes and its operators' version as the quantiser wants them; as it is where that fails."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = path
    with suppress(Exception):  # an operator that was never in a newer version: it goes without scales for channels
        model = onnx.load(path)
        if any(each.domain in ("", "ai.onnx") and each.version < _PER_CHANNEL for each in model.opset_import):
            raised = folder / f"raised-{path.name}"
            onnx.save(version_converter.convert_version(model, _PER_CHANNEL), raised)
            source = raised
    with suppress(Exception):  # shapes that it cannot follow
        ready = folder / path.name
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        return ready
    return source


class _Static:
    """Quantising with ranges that samples have shown."""

    def __init__(
        self, ready: Path, folder: Path, samples: Sequence[Sample], *, per_channel: bool, unsigned: bool
    ) -> None:
        import onnx

        self._ready, self._samples, self._per_channel, self._unsigned = ready, samples, per_channel, unsigned
        self._probes = samples[:: math.ceil(len(samples) / _PROBES)]
        self._trial = folder / "trial.onnx"
        self._ranges = folder / f"ranges-{per_channel}.json"
        self._heavy = [node.name for node in onnx.load(ready).graph.node if node.op_type in _HEAVY and node.name]

    def write(self, out: Path) -> str:
        """Write it. Returns: what was left as it was, in words; nothing, if that is nothing."""
        right = _run(self._ready, self._probes)
        self._quantise(out)
        whole = _loss(right, _run(out, self._probes))
        size = math.ceil(len(self._heavy) / _GROUPS)
        groups = [self._heavy[at : at + size] for at in range(0, len(self._heavy), size or 1)]
        if not whole > _LITTLE or len(groups) < 2:
            return ""
        harm: list[tuple[float, list[str]]] = []
        for group in groups:
            self._quantise(self._trial, only=group)
            harm.append((_loss(right, _run(self._trial, self._probes)), group))
        harm.sort(key=lambda each: -each[0])
        # What single groups cost adds up about as errors that know nothing of each other.
        costly = 1
        while costly < len(harm) - 1 and math.hypot(*(cost for cost, _ in harm[costly:])) > _LITTLE:
            costly += 1
        left = [name for _, group in harm[:costly] for name in group]
        self._quantise(self._trial, without=left)
        if not _loss(right, _run(self._trial, self._probes)) < whole:
            return ""
        out.write_bytes(self._trial.read_bytes())
        return f", {len(left)} of {len(self._heavy)} operators left as they were"

    def _quantise(self, out: Path, only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
        from onnxruntime.quantization import QuantType, quantize_static

        # Ranges are the same each time; where the library can keep them, it does.
        keep = "calibration_cache_path" in inspect.signature(quantize_static).parameters
        quantize_static(
            self._ready,
            out,
            _Calibration(self._samples),
            op_types_to_quantize=_HEAVY,
            nodes_to_quantize=list(only) or None,
            nodes_to_exclude=list(without) or None,
            per_channel=self._per_channel,
            activation_type=QuantType.QUInt8 if self._unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            **({"calibration_cache_path": self._ranges} if keep else {}),
        )


class _Calibration:
    """Samples, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: Iterator[Sample] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next one; None: that was all."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not asked of readers that give one sample after the other."""
        raise NotImplementedError


def _run(path: Path, samples: Sequence[Sample]) -> list[list[Array]]:
    """What a model makes of samples. The quantiser writes files that cannot be opened, now and then: then this raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return [session.run(None, dict(sample)) for sample in samples]


def _loss(right: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> float:
    """Root mean square of the difference over the deviation, of the output that suffers most."""
    worst = 0.0
    for outputs in zip(*(zip(one, two, strict=True) for one, two in zip(right, got, strict=True)), strict=True):
        pairs: list[tuple[Any, Any]] = [(one, two) for one, two in outputs if one.dtype.kind == "f" and one.size]
        if not pairs:
            continue
        known = np.concatenate([one.reshape(-1) for one, _ in pairs]).astype(np.float64)
        apart = np.concatenate([two.reshape(-1) for _, two in pairs]).astype(np.float64) - known
        loss = float(np.sqrt(np.mean(apart**2)) / max(float(known.std()), 1e-9))
        worst = max(worst, loss if math.isfinite(loss) else math.inf)
    return worst

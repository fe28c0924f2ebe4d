"""Quantisation to int8 with ONNX Runtime's quantiser, with a limit on the loss of accuracy.

Rules:
- Samples calibrate tensor ranges; without samples, ranges are computed at each run (`dynamic`).
- Weights are scaled per channel where the model allows it. That needs opset 13; older models are converted.
- Weights use seven bits: with eight, sums overflow on processors without 8-bit dot products (AVX2), whether activations
  are signed or not, and the same file would give different outputs on different gateways.
- A few operators often cause most of the loss, such as first layers, whose values vary most. If quantising the whole
  model loses too much, operators are quantised in groups, one group at a time, and the groups that lose most keep their
  precision.
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

from hedgerow.backends.vendors import onnx_package, translated_errors
from hedgerow.frame import Array

# These take the time. Quantising other operators loses accuracy and gains nothing.
_QUANTISED_OPERATORS: Final = ["Conv", "Gemm", "MatMul"]

_ACCEPTED_LOSS: Final = 0.1
"""Largest accepted loss: root mean square error over the standard deviation of the outputs."""

_GROUPS: Final = 8
_PROBES: Final = 8
"""Samples used to measure the loss."""

_PER_CHANNEL_OPSET: Final = 13
"""First opset with a scale per channel."""

Sample = Mapping[str, Array]


def to_int8(path: Path, out: Path, samples: Iterable[Sample], *, unsigned: bool = False) -> str:
    """Quantise the convolutions and matrix products of an ONNX model to int8.

    Args:
        samples: inputs of single runs; none: ranges are computed at each run, which makes inference slower.
        unsigned: use activations from 0 to 255, as OpenVINO needs: it computes wrong outputs with signed ones.
    Returns: the method: `static, per channel`, `static, per tensor` or `dynamic`, and how many operators were not
        quantised.
    Raises: ModelUnreadable: it cannot be quantised; BackendMissing: a package is missing.
    """
    samples = list(samples)
    onnx_package()
    failure = f"{path.name} cannot be quantised to int8"
    with tempfile.TemporaryDirectory() as folder, translated_errors(failure):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        prepared = _prepare(path, Path(folder))
        failed: Exception | None = None
        for per_channel in (True, False) if samples else ():
            try:
                quantiser = _StaticQuantiser(
                    prepared, Path(folder), samples, per_channel=per_channel, unsigned=unsigned
                )
                excluded = quantiser.write(out)
            except Exception as error:  # noqa: BLE001 - the next method may work
                failed = error
            else:
                return f"static, per {'channel' if per_channel else 'tensor'}{excluded}"
        try:
            quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8, reduce_range=True)
        except Exception as error:
            raise failed or error from error
        return "dynamic"


def _prepare(path: Path, folder: Path) -> Path:
    """Infer shapes and raise the opset, as the quantiser needs; return the original path if that fails."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = path
    with suppress(Exception):  # an operator without a newer version: no scales per channel
        model = onnx.load(path)
        if any(each.domain in ("", "ai.onnx") and each.version < _PER_CHANNEL_OPSET for each in model.opset_import):
            upgraded = folder / f"upgraded-{path.name}"
            onnx.save(version_converter.convert_version(model, _PER_CHANNEL_OPSET), upgraded)
            source = upgraded
    with suppress(Exception):  # shapes that it cannot infer
        prepared = folder / path.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        return prepared
    return source


class _StaticQuantiser:
    """Quantises a model with ranges calibrated on samples."""

    def __init__(
        self, model: Path, folder: Path, samples: Sequence[Sample], *, per_channel: bool, unsigned: bool
    ) -> None:
        import onnx

        self._model, self._samples, self._per_channel, self._unsigned = model, samples, per_channel, unsigned
        self._probes = samples[:: math.ceil(len(samples) / _PROBES)]
        self._trial = folder / "trial.onnx"
        self._ranges = folder / f"ranges-{per_channel}.json"
        nodes = onnx.load(model).graph.node
        self._operators = [node.name for node in nodes if node.op_type in _QUANTISED_OPERATORS and node.name]

    def write(self, out: Path) -> str:
        """Write the quantised model. Returns: how many operators were not quantised, in words; empty: none."""
        expected = _run(self._model, self._probes)
        self._quantise(out)
        total_loss = _loss(expected, _run(out, self._probes))
        size = math.ceil(len(self._operators) / _GROUPS)
        groups = [self._operators[at : at + size] for at in range(0, len(self._operators), size or 1)]
        if not total_loss > _ACCEPTED_LOSS or len(groups) < 2:
            return ""
        losses: list[tuple[float, list[str]]] = []
        for group in groups:
            self._quantise(self._trial, only=group)
            losses.append((_loss(expected, _run(self._trial, self._probes)), group))
        losses.sort(key=lambda each: -each[0])
        # The losses of single groups add up roughly like independent errors.
        costly = 1
        while costly < len(losses) - 1 and math.hypot(*(loss for loss, _ in losses[costly:])) > _ACCEPTED_LOSS:
            costly += 1
        excluded = [name for _, group in losses[:costly] for name in group]
        self._quantise(self._trial, without=excluded)
        if not _loss(expected, _run(self._trial, self._probes)) < total_loss:
            return ""
        out.write_bytes(self._trial.read_bytes())
        return f", {len(excluded)} of {len(self._operators)} operators not quantised"

    def _quantise(self, out: Path, only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
        from onnxruntime.quantization import QuantType, quantize_static

        # Ranges are the same each time, so they are cached if the library can.
        can_cache = "calibration_cache_path" in inspect.signature(quantize_static).parameters
        quantize_static(
            self._model,
            out,
            _Calibration(self._samples),
            op_types_to_quantize=_QUANTISED_OPERATORS,
            nodes_to_quantize=list(only) or None,
            nodes_to_exclude=list(without) or None,
            per_channel=self._per_channel,
            activation_type=QuantType.QUInt8 if self._unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            **({"calibration_cache_path": self._ranges} if can_cache else {}),
        )


class _Calibration:
    """Reads samples for ONNX Runtime's quantiser (a `CalibrationDataReader`)."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: Iterator[Sample] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next sample; None: no more."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not called for readers without random access."""
        raise NotImplementedError


def _run(path: Path, samples: Sequence[Sample]) -> list[list[Array]]:
    """Return a model's outputs for samples. Raises if the file cannot be opened, which happens with quantiser output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return [session.run(None, dict(sample)) for sample in samples]


def _loss(expected: Sequence[Sequence[Array]], actual: Sequence[Sequence[Array]]) -> float:
    """Return the root mean square error over the standard deviation, for the worst output."""
    worst = 0.0
    for outputs in zip(*(zip(one, two, strict=True) for one, two in zip(expected, actual, strict=True)), strict=True):
        pairs: list[tuple[Any, Any]] = [(one, two) for one, two in outputs if one.dtype.kind == "f" and one.size]
        if not pairs:
            continue
        reference = np.concatenate([one.reshape(-1) for one, _ in pairs]).astype(np.float64)
        error = np.concatenate([two.reshape(-1) for _, two in pairs]).astype(np.float64) - reference
        loss = float(np.sqrt(np.mean(error**2)) / max(float(reference.std()), 1e-9))
        worst = max(worst, loss if math.isfinite(loss) else math.inf)
    return worst

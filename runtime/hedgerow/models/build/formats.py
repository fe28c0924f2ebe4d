"""Forms of a model (format and precision): recognition of files, and conversion from one form to another."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hedgerow.backends import convert, quantise
from hedgerow.errors import ConfigError, ModelUnreadable
from hedgerow.models.build import gguf
from hedgerow.models.build.samples import Sample
from hedgerow.models.bundle import model_file

Format = Literal["onnx", "openvino", "tflite", "gguf"]

_FORMATS: Final[dict[str, Format]] = {".onnx": "onnx", ".xml": "openvino", ".tflite": "tflite", ".gguf": "gguf"}
_FROM_ONNX: Final = ("onnx-fp16", "onnx-int8", "openvino-fp32", "openvino-fp16", "openvino-int8")
_FROM_OTHERS: Final[dict[Format, tuple[str, ...]]] = {"tflite": ("openvino-fp32", "openvino-fp16")}


@dataclass(frozen=True, slots=True)
class Form:
    """A form of a model on disk.

    Attributes:
        format, precision: identify the form.
        files: the file a backend opens, and further files that belong to it.
        made_by: how it was produced; empty: it is the author's file.
    """

    format: Format
    precision: str
    files: tuple[Path, ...]
    made_by: str = ""

    @property
    def name(self) -> str:
        """Name as a variant: `onnx-fp32`."""
        return f"{self.format}-{self.precision}"


def form_of(path: Path) -> Form:
    """Recognise a model file.

    Raises:
        ModelUnreadable: its format is unknown, or it cannot be read.
        BackendMissing: a package is missing.
    """
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise ModelUnreadable(
            f"{path.name} is not a supported model file", remedy=f"Use a file with the suffix {', '.join(_FORMATS)}."
        )
    files = model_file.files_of(path)
    precision = gguf.read_header(path).precision if form == "gguf" else convert.precision_of(path)
    return Form(form, precision, files)


def possible_variants(original: Form) -> tuple[str, ...]:
    """Return the names of the variants that can be made from a form, including itself."""
    if original.format == "onnx" and original.precision == "fp32":
        return (original.name, *_FROM_ONNX)
    if original.format == "onnx":
        return (original.name, f"openvino-{original.precision}")
    return (original.name, *_FROM_OTHERS.get(original.format, ()))


def check(original: Form, requested: Sequence[str]) -> tuple[str, ...]:
    """Return the variants to make, without duplicates; by default the original only.

    Raises: ConfigError: a variant cannot be made.
    """
    possible = possible_variants(original)
    for name in requested:
        if name not in possible:
            raise ConfigError(
                f"Variant {name!r} cannot be made from {original.files[0].name}, which is {original.name}",
                remedy=f"Choose from {', '.join(possible)}"
                + ("." if original.format == "onnx" else "; or build from the ONNX file, which allows more variants."),
            )
    return tuple(dict.fromkeys(requested)) or (original.name,)


def make(original: Form, name: str, folder: Path, samples: Sequence[Sample]) -> Form:
    """Create a variant in a folder.

    Args:
        original: the form to convert.
        name: one of `possible_variants(original)`.
        samples: calibration inputs for int8; none: quantise without calibration.
    Raises:
        ModelUnreadable, BackendMissing: the conversion failed.
        ConfigError: the variant needs samples.
    """
    folder.mkdir(parents=True)
    path = original.files[0]
    form, _, precision = name.partition("-")
    if name == original.name:
        copies = tuple(folder / file.relative_to(path.parent) for file in original.files)
        for file, copy in zip(original.files, copies, strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        return Form(original.format, original.precision, copies)
    if form == "onnx":
        out = folder / path.name
        if precision == "fp16":
            convert.to_fp16(path, out)
            return Form("onnx", precision, model_file.files_of(out), "converted by ONNX Runtime")
        how = quantise.to_int8(path, out, samples)
        return Form("onnx", precision, model_file.files_of(out), f"quantised by ONNX Runtime, {how}")
    out = folder / f"{path.stem}.xml"
    if precision != "int8" or original.precision == "int8":
        convert.to_openvino(path, out, half=precision == "fp16")
        return Form("openvino", precision, model_file.files_of(out), "converted by OpenVINO")
    if not samples:
        raise ConfigError(
            f"{name} needs samples: without them, ranges are computed at each run, which OpenVINO does wrongly",
            remedy="Pass `--samples` of typical inputs, or build onnx-int8.",
        )
    quantised = folder / path.name
    how = quantise.to_int8(path, quantised, samples, unsigned=True)
    convert.to_openvino(quantised, out, half=False)
    for file in model_file.files_of(quantised):
        file.unlink()
    return Form(
        "openvino", precision, model_file.files_of(out), f"quantised by ONNX Runtime, {how}; converted by OpenVINO"
    )

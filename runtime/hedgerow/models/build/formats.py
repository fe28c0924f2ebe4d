"""The forms of a model: which file is what, and how one form is made from another."""

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
    """A form of a model on the disk.

    Attributes:
        format, precision: what it is.
        files: the one a backend opens, and those that belong to it.
        made_by: how it came about; empty: it is the author's own.
    """

    format: Format
    precision: str
    files: tuple[Path, ...]
    made_by: str = ""

    @property
    def name(self) -> str:
        """As variants are called: `onnx-fp32`."""
        return f"{self.format}-{self.precision}"


def form_of(path: Path) -> Form:
    """What a model's file is.

    Raises:
        ModelUnreadable: it is none that we know, cannot be read, or keeps weights where nobody would look for them.
        BackendMissing: a package for that is missing.
    """
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise ModelUnreadable(
            f"{path.name} is no model that is known", remedy=f"Give a file that ends in {', '.join(_FORMATS)}."
        )
    files = model_file.files_of(path)
    if form == "onnx":
        for name in convert.external_data(path):
            if path.parent / name not in files:
                raise ModelUnreadable(
                    f"{path.name} keeps weights in {name}, which its digest would not cover",
                    remedy=f'Save it with `onnx.save(model, path, save_as_external_data=True, location="{path.name}.data")`.',
                )
    precision = gguf.read_header(path).precision if form == "gguf" else convert.precision_of(path)
    return Form(form, precision, files)


def possible(given: Form) -> tuple[str, ...]:
    """The variants that can be made from a form, itself among them."""
    if given.format == "onnx" and given.precision == "fp32":
        return (given.name, *_FROM_ONNX)
    if given.format == "onnx":
        return (given.name, f"openvino-{given.precision}")
    return (given.name, *_FROM_OTHERS.get(given.format, ()))


def check(given: Form, wanted: Sequence[str]) -> tuple[str, ...]:
    """The variants to make; by default the given one.

    Raises: ConfigError: one cannot be made, or is named twice.
    """
    able = possible(given)
    for name in wanted:
        if name not in able:
            raise ConfigError(
                f"A variant {name!r} cannot be made of {given.files[0].name}, which is {given.name}",
                remedy=f"Choose among {', '.join(able)}"
                + ("." if given.format == "onnx" else "; or build from the ONNX file, of which more can be made."),
            )
    return tuple(dict.fromkeys(wanted)) or (given.name,)


def make(given: Form, name: str, folder: Path, samples: Sequence[Sample]) -> Form:
    """Make a form in a folder.

    Args:
        given: what it is made of.
        name: what it is to be, one of `possible(given)`.
        samples: what int8 is calibrated by; none: it is done without.
    Raises:
        ModelUnreadable, BackendMissing: it cannot be made.
        ConfigError: it cannot be made without samples.
    """
    folder.mkdir(parents=True)
    path = given.files[0]
    form, _, precision = name.partition("-")
    if name == given.name:
        return Form(
            given.format,
            given.precision,
            tuple(Path(shutil.copyfile(file, folder / file.name)) for file in given.files),
        )
    if form == "onnx":
        out = folder / path.name
        if precision == "fp16":
            convert.to_fp16(path, out)
            return Form("onnx", precision, model_file.files_of(out), "converted by ONNX Runtime")
        how = quantise.to_int8(path, out, samples)
        return Form("onnx", precision, model_file.files_of(out), f"quantised by ONNX Runtime, {how}")
    out = folder / f"{path.stem}.xml"
    if precision != "int8" or given.precision == "int8":
        convert.to_openvino(path, out, half=precision == "fp16")
        return Form("openvino", precision, model_file.files_of(out), "converted by OpenVINO")
    if not samples:
        raise ConfigError(
            f"{name} needs samples: without any, ranges are found anew at each run, which OpenVINO does not do right",
            remedy="Give `--samples` of what the model meets in use, or make onnx-int8.",
        )
    between = folder / path.name
    how = quantise.to_int8(path, between, samples, unsigned=True)
    convert.to_openvino(between, out, half=False)
    for file in model_file.files_of(between):
        file.unlink()
    return Form(
        "openvino", precision, model_file.files_of(out), f"quantised by ONNX Runtime, {how}; converted by OpenVINO"
    )

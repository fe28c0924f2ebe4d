"""The recipe of a bundle: `model.yaml`, in which an author states what the model's file does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import Field

from hedgerow.config import Name, Section
from hedgerow.configfile import Document
from hedgerow.models.bundle.manifest import Tolerance
from hedgerow.wire.fleet import Version

RECIPE: Final = "model.yaml"
"""Name of the recipe that is used if it is beside the model's file."""


class Recipe(Section):
    """How to build a bundle, and what its manifest states. Paths are relative to this file."""

    model: str | None = Field(
        None,
        description="The model's file: .onnx, .xml with its .bin, .tflite or .gguf; or `package:NAME/path/inside` for one "
        "inside an installed Python package.",
    )
    name: Name | None = Field(None, description="Name of the model; by default its file's name.")
    version: Version | None = Field(None, description="Semantic version: 1.0.0.")
    description: str = Field("", description="What the model does, in a sentence.")
    licence: str = Field(
        "", description="SPDX expression.", examples=["Apache-2.0", "MIT OR Apache-2.0", "LicenseRef-Ours"]
    )
    author: str = Field("", description="Author of the model.")
    labels: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    labels_file: Path | None = Field(
        None, description="File with the labels, one per line, with or without their index."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Values for pre- and post-processing: sizes, means, thresholds."
    )
    serving: dict[str, Any] = Field(
        default_factory=dict,
        description="How to run the model: the settings of a model in a node's file, except `path`.",
        examples=[{"constants": {"sr": 16000}, "state": {"state": "stateN"}, "batch_axis": {"state": 1}}],
    )
    training_data: str = Field("", description="Name or URL of the training data.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Metrics that you measured, by name.")
    variants: tuple[str, ...] = Field(
        (),
        description="Variants to build, in the order in which nodes should prefer them: onnx-fp32, onnx-fp16, onnx-int8, "
        "openvino-fp32, openvino-fp16, openvino-int8. By default a copy of the file.",
        examples=[["openvino-int8", "onnx-fp32"]],
    )
    samples: tuple[Path, ...] = Field(
        (), description="Typical inputs: .npz and .npy files or folders of them; with `config`, frames."
    )
    config: Path | None = Field(
        None,
        description="A node's configuration. Samples are then frames (pictures, sound, tables), which run through the stages "
        "of the pipeline that uses the model `name`.",
    )
    pipeline: Name | None = Field(
        None, description="Pipeline of `config` to use; by default the first that uses the model."
    )
    max_samples: int = Field(256, ge=1, description="Largest number of samples to use.")
    golden: int = Field(4, ge=0, le=64, description="Number of golden cases.")
    shapes: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="Without samples: shapes of inputs with dynamic axes besides the batch. Golden inputs are then noise.",
    )
    tolerance: Tolerance | None = Field(
        None, description="How far outputs may differ from the golden ones; by default estimated from the samples."
    )
    max_loss: float = Field(
        0.2,
        gt=0,
        description="Largest accuracy loss of a variant: root mean square of the difference to the original model's outputs, "
        "over their standard deviation.",
    )
    devices: tuple[str, ...] = Field((), description="Devices that variants can run on; by default CPU.")
    made_at: str | None = Field(
        None,
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
        description="Build time in UTC. By default SOURCE_DATE_EPOCH, else the modification time of the model's file.",
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, and make its paths relative to the working directory.

    Raises: BadConfigFile: it cannot be read or is invalid; the message lists every problem with its line.
    """
    recipe = Document.read(path).as_a(Recipe, "model")
    folder = path.parent
    changes: dict[str, Any] = {"samples": tuple(folder / sample for sample in recipe.samples)}
    if recipe.model is not None and not recipe.model.startswith("package:"):
        changes["model"] = str(folder / recipe.model)
    for name in ("labels_file", "config"):
        if (value := getattr(recipe, name)) is not None:
            changes[name] = folder / value
    return recipe.model_copy(update=changes)

"""What an author says of a model that cannot be read from its file: `model.yaml`, and the flags that go over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import Field

from hedgerow.config import Name, Section
from hedgerow.configfile import Document
from hedgerow.errors import ConfigError
from hedgerow.models.bundle.manifest import Tolerance
from hedgerow.wire.fleet import Version

RECIPE: Final = "model.yaml"
"""The file that is taken where it lies beside the model's."""


class Recipe(Section):
    """How a bundle is made, and what its manifest says. Paths are relative to this file."""

    model: str | None = Field(
        None,
        description="The model's file: .onnx, .xml with its .bin, .tflite or .gguf; or `package:NAME/path/inside` for one "
        "inside an installed Python package.",
    )
    name: Name | None = Field(None, description="Name of the model; by default its file's name.")
    version: Version | None = Field(None, description="Semantic version: 1.0.0.")
    description: str = Field("", description="What it does, in a sentence.")
    licence: str = Field(
        "", description="SPDX expression.", examples=["Apache-2.0", "MIT OR Apache-2.0", "LicenseRef-Ours"]
    )
    author: str = Field("", description="Who made it.")
    labels: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    labels_file: Path | None = Field(None, description="File with these names, one a line.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="What pre- and post-processing need: sizes, means, thresholds."
    )
    serving: dict[str, Any] = Field(
        default_factory=dict,
        description="How it is to be run: what a node's file may say of a model, but for `path`.",
        examples=[{"constants": {"sr": 16000}, "state": {"state": "stateN"}, "batch_axis": {"state": 1}}],
    )
    training_data: str = Field("", description="Where that is described: a name, an address.")
    metrics: dict[str, float] = Field(default_factory=dict, description="As you measured them.")
    variants: tuple[str, ...] = Field(
        (),
        description="Which forms to make, the one that nodes should take first in front: onnx-fp32, onnx-fp16, onnx-int8, "
        "openvino-fp32, openvino-fp16, openvino-int8. By default the file as it is.",
        examples=[["openvino-int8", "onnx-fp32"]],
    )
    samples: tuple[Path, ...] = Field(
        (), description="What the model meets in use: .npz and .npy files, folders of them, or with `config` frames."
    )
    config: Path | None = Field(
        None,
        description="A node's configuration. Samples are then frames (pictures, sound, tables), and run through the stages of "
        "the pipeline that uses the model, under the name `name`.",
    )
    pipeline: Name | None = Field(None, description="Which pipeline of that; by default the first that uses the model.")
    max_samples: int = Field(256, ge=1, description="Most samples to take.")
    golden: int = Field(4, ge=0, le=64, description="Golden cases to make of them.")
    shapes: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="Without samples: shapes of inputs that are open beyond the batch. Golden inputs are noise then.",
    )
    tolerance: Tolerance | None = Field(
        None, description="How far outputs may be from the golden ones; by default found by the samples."
    )
    max_loss: float = Field(
        0.2,
        gt=0,
        description="Most that a variant may cost: root mean square of the difference to the model's own outputs, over that of "
        "their deviation.",
    )
    devices: tuple[str, ...] = Field(
        (), description="Devices that variants can run on; by default those of this machine that did."
    )
    made_at: str | None = Field(
        None,
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
        description="UTC. By default SOURCE_DATE_EPOCH, else the time of the model's file.",
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; its paths then count from where the program runs.

    Raises: BadConfigFile: it cannot be read or does not validate; every problem with its line.
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


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line.

    Raises: ConfigError: the file cannot be read.
    """
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", remedy="Give a text file with a name on each line."
        ) from error

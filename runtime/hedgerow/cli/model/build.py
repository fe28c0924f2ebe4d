"""`hedgerow model build`: build a bundle from a model file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_table
from hedgerow.errors import ConfigError
from hedgerow.terminal import supports_redraw

if TYPE_CHECKING:
    from hedgerow.models.build.builder import Built, Requests
    from hedgerow.models.build.evidence import Progress
    from hedgerow.models.build.recipe import Recipe
    from hedgerow.models.bundle.manifest import Variant


def build(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file (.onnx, .xml, .tflite, .gguf), `package:NAME/path/inside`, or a recipe (.yaml)."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model; by default the file's.")] = None,
    version: Annotated[str | None, typer.Option(help="Semantic version, such as 1.0.0.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            "-v",
            help="Variant to build: onnx-fp16, openvino-int8 …; most preferred first. Repeatable.",
        ),
    ] = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option(
            "--samples", "-s", help="Typical inputs: .npz, .npy or a folder; with --config, frames. Repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A node's configuration: its stages turn the samples, which are frames, into inputs."
        ),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Pipeline of --config; by default the first that uses the model.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="File with the class names, one per line.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="SPDX expression, such as Apache-2.0.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Author of the model.")] = None,
    description: Annotated[str | None, typer.Option(help="What the model does.")] = None,
    training_data: Annotated[str | None, typer.Option(help="URL or reference of the training data.")] = None,
    golden: Annotated[int | None, typer.Option(min=0, max=64, help="Number of golden cases; 4 by default.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="INPUT=N,N,...",
            help="Without samples: shape for an input with open dimensions. Repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; by default bundles/NAME-VERSION.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe; by default model.yaml beside the model, if it exists.")
    ] = None,
    state_dir: Annotated[Path, typer.Option(help="Folder for measurements.")] = Path(".hedgerow"),
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a different bundle of this version.")] = False,
    json: Json = False,
) -> None:
    """Build a bundle: a model's variants, and everything a node needs to trust, test and run them.

    Examples:
      hedgerow model build door.onnx --version 1.0.0 --samples door-inputs.npz
      hedgerow model build door.onnx --version 1.0.0 -v openvino-int8 -v onnx-fp32 -s frames/ --config node.yaml
      hedgerow model build recipe.yaml

    Golden inputs and outputs, tolerances, statistics and int8 calibration come from the samples: ten to a few hundred
    typical frames. Without samples, golden inputs are noise, there are no statistics, and onnx-int8 uses dynamic
    quantisation.

    A recipe (model.yaml) can state all of this and more; flags override it:
      name: door
      version: 1.2.0
      licence: Apache-2.0
      labels: [open, closed]
      parameters: {threshold: 0.4}
      serving: {max_batch: 8}
      training_data: https://example.org/doors
      metrics: {f1: 0.97}
      variants: [openvino-int8, onnx-fp32]
      samples: [frames/]
      config: node.yaml

    Builds are reproducible to the byte; the build time is SOURCE_DATE_EPOCH, or else the model file's modification time.
    Needs `pip install 'hedgerow[build]'`.
    """
    from hedgerow.models.build import builder

    flags = {
        "name": name,
        "version": version,
        "variants": tuple(variant) if variant else None,
        "samples": tuple(samples) if samples else None,
        "config": config,
        "pipeline": pipeline,
        "labels_file": labels,
        "licence": licence,
        "author": author,
        "description": description,
        "training_data": training_data,
        "golden": golden,
        "shapes": dict(map(_shape, shape)) if shape else None,
    }
    complete = _recipe(model, recipe, {key: value for key, value in flags.items() if value is not None})
    with _progress(quiet=json) as progress:
        requests = None
        if complete.config is not None:
            requests, complete = _stage_requests(complete, progress)
        built = builder.build(complete, out, requests=requests, state_dir=state_dir, replace=replace, progress=progress)
    if json:
        print_json(_report(built))
    else:
        _print(built)


def _recipe(model: str, path: Path | None, flags: dict[str, Any]) -> Recipe:
    """Return the recipe of a model or file, overridden by flags."""
    from pydantic import ValidationError

    from hedgerow.models.build.recipe import RECIPE, Recipe, read_recipe

    file = None if model.endswith((".yaml", ".yml")) else model
    beside = Path(model).parent / RECIPE
    if file is None:
        path = Path(model)
    found = file is not None and path is None and not model.startswith("package:") and beside.is_file()
    if found:
        path = beside
    recipe = read_recipe(path) if path is not None else Recipe()
    if found and recipe.model is not None and Path(recipe.model) != Path(model):
        raise ConfigError(
            f"{path} is the recipe of {recipe.model}, not of {file}",
            remedy=f"To build {recipe.model}: `hedgerow model build {path}`. To use the recipe anyway: `--recipe {path}`.",
        )
    try:
        return Recipe.model_validate({**recipe.model_dump(exclude_unset=True), **flags, "model": file or recipe.model})
    except ValidationError as error:
        from hedgerow.configfile import explain

        first = error.errors()[0]
        message, advice = explain(first)
        if first["loc"] == ("version",):
            message, advice = f"{first['input']!r} is not a semantic version", "Use one such as 1.0.0 or 2.1.0-rc.1."
        raise ConfigError(
            f"--{'-'.join(map(str, first['loc']))}: {message}", remedy=advice or "See `hedgerow model build --help`."
        ) from error


def _stage_requests(recipe: Recipe, progress: Progress | None) -> tuple[Requests, Recipe]:
    """Return a function that runs frames through a node's stages, and the recipe with that node's serving settings."""
    from hedgerow import configfile
    from hedgerow.cli.model.samples import record

    assert recipe.config is not None  # noqa: S101 - checked by the caller
    path, node = recipe.config, configfile.load(recipe.config)
    if not recipe.samples:
        raise ConfigError(
            "--config needs frames to run through the stages, and there are no samples",
            remedy="Add pictures, sound or tables: `--samples FOLDER`.",
        )
    name = recipe.name or Path(str(recipe.model)).stem
    if name in node.models and not recipe.serving:
        fields = {"constants", "state", "batch_axis", "open_batch", "static_batches", "max_batch"}
        serving = node.models[name].model_dump(include=fields, exclude_defaults=True)
        recipe = recipe.model_copy(update={"serving": serving})

    def requests(file: Path, config: Any, limit: int) -> Any:
        return record(
            node, path.absolute().parent, name, recipe.pipeline, recipe.samples, file, config, limit, progress
        )

    return requests, recipe


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(number) for number in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise typer.BadParameter(f"{text!r} is not of the form INPUT=N,N,..., such as x=1,3,320,320")
    return name, shape


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None] | None]:
    """Yield a function that shows progress on stderr: a bar on a terminal, else a line per step."""
    if quiet:
        yield None
    elif supports_redraw(sys.stderr):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        with Progress(
            TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True
        ) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda what, done: bar.update(task, description=what, completed=done)
    else:
        current = ""

        def line(what: str, done: float) -> None:  # noqa: ARG001 - a log shows whole steps only
            nonlocal current
            if (step := what.partition(":")[0]) != current:
                current = step
                echo(f"{step}…", err=True)

        yield line


def _print(built: Built) -> None:
    manifest, bundle = built.bundle.manifest, built.bundle
    echo(f"{manifest.name} {manifest.version}  {bundle.digest}")
    loss_heading = f"LOSS ON {'SAMPLES' if built.samples else 'NOISE'}"
    headings = ("VARIANT", ">SIZE", ">MEMORY", "RUNS ON", loss_heading, "HOW")
    print_table(headings, [variant_row(variant, built.made) for variant in manifest.variants], omit_first=("HOW",))
    for variant_name, refused in built.refused.items():
        for backend, why in refused.items():
            echo(f"\n{variant_name} does not run on {backend}: {why}")
    echo("")
    if not built.samples:
        echo("Without --samples, golden inputs are noise, and there are no statistics.")
    outcome = "is unchanged" if built.unchanged else "written"
    echo(
        f"{bundle.folder} {outcome}: {plural(len(manifest.golden), 'golden case')}, "
        f"{size(sum({file.path: file.size for file in manifest.files()}.values()))}."
    )


def variant_row(variant: Variant, made: dict[str, str]) -> tuple[str, ...]:
    """Return a variant's table row."""
    return (
        variant.name,
        size(sum(file.size for file in variant.files)),
        size(variant.needs.memory_bytes),
        ", ".join(variant.needs.backends),
        loss(variant.accuracy),
        made.get(variant.name, ""),
    )


def loss(accuracy: dict[str, float]) -> str:
    """Format the accuracy that lower precision costs."""
    if not accuracy:
        return "-"
    top1 = f", {accuracy['top1']:.1%} same top-1" if "top1" in accuracy else ""
    return f"{accuracy['rms']:.2%} RMS, {accuracy['worst']:.2%} max{top1}"


def _report(built: Built) -> dict[str, Any]:
    return {
        "folder": str(built.bundle.folder),
        "name": built.bundle.manifest.name,
        "version": built.bundle.manifest.version,
        "digest": built.bundle.digest,
        "samples": built.samples,
        "unchanged": built.unchanged,
        "made": built.made,
        "refused": built.refused,
        "variants": {variant.name: variant.accuracy for variant in built.bundle.manifest.variants},
    }

"""`hedgerow tune`: find the fastest way to run a model on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, print_json
from hedgerow.cli.base.options import Json, MaxBatch, MeasuringTime
from hedgerow.cli.base.tables import print_table
from hedgerow.terminal import supports_redraw

if TYPE_CHECKING:
    from hedgerow.backends.tune import Tuning
    from hedgerow.config import ModelConfig, NodeSection

_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def tune(
    model: Annotated[
        str, typer.Argument(help="A model file, `package:NAME/path/inside`, or the name of a model in --config.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The node's configuration: its `models:` and `node:`.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="INPUT=N,N,...", help="Shape for an input with open dimensions. Repeatable."),
    ] = None,
    seconds: MeasuringTime = 20,
    max_batch: MaxBatch = 64,
    save: Annotated[bool, typer.Option(help="Save the result for `backend: auto`.")] = True,
    json: Json = False,
) -> None:
    """Find the fastest backend, streams and batch for a model on this machine.

    Examples:
      hedgerow tune models/door.onnx
      hedgerow tune voice --config configs/demo.yaml
      hedgerow tune detector.onnx --shape x=1,3,320,320 --seconds 60

    Every backend that can open the file is run on random inputs. Their outputs are compared, and a backend that disagrees is listed
    but never chosen. The result is saved in the node's state folder for this file and processor, and used by a model with
    `backend: auto` from its next start. Tune on an otherwise idle machine. Exits with 1 if no backend can run the model.
    """
    from hedgerow import backends
    from hedgerow.backends import tuned
    from hedgerow.backends.cores import cores as owned_cores
    from hedgerow.backends.tune import tune as measure
    from hedgerow.models.bundle.model_file import resolve
    from hedgerow.models.session.load import batch_axes, load_signature
    from hedgerow.models.session.random_inputs import random_batch

    settings, node, base_dir = _model_settings(model, config)
    source = resolve(settings.path, base_dir)
    cores = node.threads or owned_cores()
    candidates = backends.candidates(source.path, settings.backend)
    model_signature = load_signature(source, settings)
    shapes = _shapes(shape or [], [spec.name for spec in model_signature.inputs])
    fixed = model_signature.fixed
    batches = [fixed] if fixed else [rows for rows in _BATCHES if rows <= model_signature.limit(max_batch)]

    with progress_bar(quiet=json) as progress:
        tuning = measure(
            source.path,
            candidates,
            lambda rows: random_batch(model_signature, rows, shapes),
            batches,
            cores=cores,
            device=settings.device,
            vendor=settings.options,
            batch_axes=batch_axes(settings),
            open_batch=settings.open_batch,
            seconds=seconds,
            progress=progress,
        )
    saved = None
    if tuning.choice is not None and save:
        saved = tuned.save(node.state_dir, source.digest, settings.device, cores, tuning.choice, model=source.path.name)
    if json:
        report = _report(tuning, source.path, source.digest, tuned.machine(cores), saved)
        print_json({**report, "unbatched": model_signature.unbatched})
    else:
        _print(tuning, source.path, tuned.machine(cores), saved)
        if model_signature.unbatched is not None:
            echo(f"Its frames run one at a time: {model_signature.unbatched}.")
    if tuning.choice is None:
        raise typer.Exit(1)


def _model_settings(model: str, config: Path | None) -> tuple[ModelConfig, NodeSection, Path]:
    from hedgerow.config import ModelConfig, NodeSection
    from hedgerow.errors import ConfigError

    if config is None:
        return ModelConfig(path=model), NodeSection(), Path.cwd()
    from hedgerow import configfile

    loaded = configfile.load(config)
    if model in loaded.models:
        return loaded.models[model], loaded.node, config.absolute().parent
    if loaded.models.keys() and not Path(model).suffix:
        raise ConfigError(
            f"{config} has no model {model!r}; it has {', '.join(sorted(loaded.models))}",
            remedy="Name one of these, or a model file.",
        )
    return ModelConfig(path=model), loaded.node, Path.cwd()


def _shapes(texts: list[str], inputs: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise typer.BadParameter(f"{text!r} is not of the form INPUT=N,N,..., such as {inputs[0]}=1,3,320,320")
        if name not in inputs:
            raise typer.BadParameter(f"the model has no input {name!r}; it has {', '.join(inputs)}")
        shapes[name] = shape
    return shapes


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """Yield a function that shows progress on stderr: a bar on a terminal, else a line every quarter."""
    if quiet:
        yield None
    elif supports_redraw(sys.stderr):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("Measuring"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Measuring", total=1.0)
            yield lambda done: bar.update(task, completed=done)
    else:
        shown = -1

        def line(done: float) -> None:
            nonlocal shown
            if int(done * 4) > shown:
                shown = int(done * 4)
                echo(f"measuring: {shown * 25} %", err=True)

        yield line


def _print(tuning: Tuning, path: Path, machine: str, saved: Path | None) -> None:
    echo(f"{path.name} on {machine}\n")
    headings = ("", "BACKEND", ">STREAMS", ">THREADS", ">BATCH", ">FRAMES/S", ">MS/INFERENCE", "")
    rows = []
    choice = tuning.choice
    for setting in sorted(tuning.settings, key=lambda setting: -setting.rows_per_s):
        chosen = choice is not None and (setting.backend, setting.streams, setting.batch) == (
            choice.backend,
            choice.streams,
            choice.max_batch,
        )
        measured = bool(setting.rates)
        rows.append(
            (
                "*" if chosen else "",
                setting.backend,
                str(setting.streams),
                str(setting.threads),
                str(setting.batch),
                f"{setting.rows_per_s:,.0f}" if measured else "-",
                f"{setting.time_s * 1000:.2f}" if measured else "-",
                setting.failed or ("" if measured else "not measured: out of time"),
            )
        )
    if rows:
        print_table(headings, rows, names=2)
    for backend, why in tuning.refused.items():
        echo(f"\n{backend} cannot be chosen: {why}")
    if choice is None:
        echo("\nNo backend can run this model here.", err=True)
        return
    echo(
        f"\nFastest: {choice.backend}, {choice.streams} × {choice.threads} threads, batches of up to {choice.max_batch}: "
        f"{choice.rows_per_s:,.0f} frames/s."
    )
    if saved is not None:
        echo(f"Saved to {saved}; models with `backend: auto` use it from their next start.")


def _report(tuning: Tuning, path: Path, digest: str, machine: str, saved: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": str(path),
        "digest": digest,
        "machine": machine,
        "choice": asdict(tuning.choice) if tuning.choice is not None else None,
        "settings": [
            {
                "backend": setting.backend,
                "streams": setting.streams,
                "threads": setting.threads,
                "batch": setting.batch,
                "frames_per_s": setting.rows_per_s if setting.rates else None,
                "inference_s": setting.time_s if setting.rates else None,
                "rounds": len(setting.rates),
                "failed": setting.failed,
            }
            for setting in tuning.settings
        ],
        "refused": tuning.refused,
        "differences": tuning.differences,
        "kept": str(saved) if saved is not None else None,
    }

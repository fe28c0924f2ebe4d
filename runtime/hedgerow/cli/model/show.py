"""`hedgerow model show` and `bom`: describe a bundle for people and as an ML-BOM."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, human_readable, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_facts, print_table
from hedgerow.cli.model.build import loss
from hedgerow.cli.model.lookup import BundleName, From, no_files, open_bundle

if TYPE_CHECKING:
    from hedgerow.models.bundle.bench_results import Figures, Machine
    from hedgerow.models.bundle.folder import Bundle
    from hedgerow.models.bundle.manifest import Manifest, Tensor, Tolerance

_SHOWN_LABELS = 8
_LONGEST = 240
"""Characters shown of an author's text; --json has all."""


def show(bundle: BundleName, from_: From = None, json: Json = False) -> None:
    """Show a bundle: variants with their requirements and loss of accuracy, inputs and outputs, and provenance.

    Examples:
      hedgerow model show bundles/door-1.2.0
      hedgerow model show door/1.2.0 --from models
      hedgerow model show door --from /var/lib/hedgerow --json

    It reads only the manifest; `hedgerow model verify` checks the files. Results of `hedgerow model bench` follow, for each
    machine type.
    """
    from hedgerow.models.bundle import bench_results

    with open_bundle(bundle, from_, no_files) as source:
        measured = bench_results.read(bench_results.path_for(source.folder), source.digest)
        if json:
            print_json(_report(source, measured, folder=None if from_ else source.folder))
        else:
            _print(source, measured)


def bom(
    bundle: BundleName,
    from_: From = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default standard output.")] = None,
) -> None:
    """Write a bundle's bill of materials as an ML-BOM: CycloneDX 1.6, JSON.

    Examples:
      hedgerow model bom bundles/door-1.2.0 > door.cdx.json
      hedgerow model bom door/1.2.0 --from models --out door.cdx.json

    It lists the model with its card (inputs, outputs, data set, metrics), licence, author and ancestors, the variants with
    their loss of accuracy, and every file with its digest. The document of a bundle is always the same. Needs
    `pip install 'hedgerow[build]'`.
    """
    import orjson

    from hedgerow import disk
    from hedgerow.errors import ConfigError
    from hedgerow.models.bundle.bom import bom as make

    with open_bundle(bundle, from_, no_files) as source:
        document = make(source)
    if out is None:
        print_json(document)
        return
    try:
        disk.replace(out, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror}", remedy="Name another file with --out.") from error
    echo(f"Wrote {out}.")


def _report(bundle: Bundle, measured: Figures, folder: Path | None) -> dict[str, Any]:
    return {
        "folder": str(folder) if folder else None,
        "digest": bundle.digest,
        "size": total_size(bundle.manifest),
        "manifest": bundle.manifest.model_dump(mode="json", by_alias=True),
        "measured": measured.model_dump(mode="json")["machines"],
    }


def total_size(manifest: Manifest) -> int:
    """Return the bytes of a bundle's files, counting each file once."""
    return sum({file.path: file.size for file in manifest.files()}.values())


def _print(bundle: Bundle, measured: Figures) -> None:
    manifest, provenance = bundle.manifest, bundle.manifest.provenance
    print_facts([(f"{manifest.name} {manifest.version}", bundle.digest)])
    if manifest.description:
        print_facts([(manifest.description,)])
    about = {
        "licence": manifest.licence,
        "author": provenance.author,
        "built": " by ".join(filter(None, (provenance.made_at, provenance.made_by))),
        "built from": ", ".join(f"{origin.file} ({origin.digest[:19]})" for origin in provenance.made_from),
        "training data": provenance.training_data,
        "metrics": ", ".join(f"{name} {value:g}" for name, value in provenance.metrics.items()),
        "labels": _labels(manifest.labels),
        **{f"parameters.{name}": human_readable(value) for name, value in manifest.parameters.items()},
        **{f"serving.{name}": human_readable(value) for name, value in manifest.serving.items()},
    }
    print_facts([(name, shorten(text, _LONGEST, placeholder=" …")) for name, text in about.items() if text])
    _tensors(manifest)
    echo("")
    headings = ("VARIANT", ">SIZE", ">MEMORY", "RUNS ON", "TOLERANCE", "LOSS")
    rows = [
        (
            variant.name,
            size(sum(file.size for file in variant.files)),
            size(variant.needs.memory_bytes),
            f"{', '.join(variant.needs.backends)} on {', '.join(variant.needs.devices)}",
            _tolerance(variant.tolerance),
            loss(variant.accuracy),
        )
        for variant in manifest.variants
    ]
    print_table(headings, rows, omit_first=("TOLERANCE",))
    echo("")
    baseline = f"statistics of {plural(manifest.baseline.samples, 'sample')}" if manifest.baseline else "no statistics"
    echo(f"{plural(len(manifest.golden), 'golden case')}, {baseline}, {size(total_size(manifest))}.")
    for machine in measured.machines:
        echo("")
        print_figures(machine)


def _tensors(manifest: Manifest) -> None:
    if not manifest.inputs and not manifest.outputs:
        return
    baseline = manifest.baseline
    headings = ("", "TENSOR", "TYPE", ">MEAN", ">DEVIATION", ">RANGE")
    rows = []
    for direction, tensors, statistics in (
        ("in", manifest.inputs, baseline.inputs if baseline else {}),
        ("out", manifest.outputs, baseline.outputs if baseline else {}),
    ):
        for tensor in tensors:
            values = statistics.get(tensor.name)
            row = (direction, tensor.name, tensor_type(tensor))
            if values is None:
                rows.append((*row, "-", "-", "-"))
            else:
                spread = f"{values.minimum:.4g} to {values.maximum:.4g}"
                rows.append((*row, f"{values.mean:.4g}", f"{values.deviation:.4g}", spread))
    echo("")
    print_table(headings, rows, names=2)


def tensor_type(tensor: Tensor) -> str:
    """Format a tensor's type: `float32[?, 3, 320, 320]`."""
    return f"{tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"


def _tolerance(tolerance: Tolerance) -> str:
    outliers = f", except {tolerance.outliers:.1%}" if tolerance.outliers else ""
    wider = "".join(f", {name} {absolute:g}" for name, absolute in tolerance.outputs.items())
    return f"{tolerance.absolute:g}{wider} + {tolerance.relative:.2%}{outliers}"


def _labels(labels: tuple[str, ...]) -> str:
    if not labels:
        return ""
    more = ", …" if len(labels) > _SHOWN_LABELS else ""
    return f"{len(labels)}: {', '.join(labels[:_SHOWN_LABELS])}{more}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def print_figures(machine: Machine) -> None:
    """Print the measurements of a machine."""
    print_facts([(f"Measured on {machine.machine}, {machine.at}",)])
    headings = ("VARIANT", "DEVICE", "BACKEND", ">STREAMS", ">THREADS", ">BATCH", ">FRAMES/S", ">MS SINGLE")
    rows = [
        (
            figure.variant,
            figure.device,
            figure.backend or "-",
            _or_dash(figure.streams),
            _or_dash(figure.threads),
            _or_dash(figure.batch),
            "-" if figure.frames_per_s is None else f"{figure.frames_per_s:,.0f}",
            "-" if figure.single_s is None else f"{figure.single_s * 1000:.2f}",
        )
        for figure in machine.figures
    ]
    print_table(headings, rows, names=2, omit_first=("THREADS", "STREAMS", "BATCH"))
    for figure in machine.figures:
        for backend, why in figure.not_run.items():
            print_facts([(f"{figure.variant} on {figure.device} with {backend}:", why)])

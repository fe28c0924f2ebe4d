"""`hedgerow model show` and `bom`: what a bundle is."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import human_readable, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_facts, print_table
from hedgerow.cli.model.build import cost
from hedgerow.cli.model.lookup import From, Named, nothing, opened

if TYPE_CHECKING:
    from hedgerow.models.bundle.bench_results import Figures, Machine
    from hedgerow.models.bundle.folder import Bundle
    from hedgerow.models.bundle.manifest import Manifest, Tensor, Tolerance

_SHOWN_LABELS = 8
_LONGEST = 240
"""Signs of what an author may say that are shown; --json has all."""


def show(bundle: Named, from_: From = None, json: Json = False) -> None:
    """Show what a bundle is: its variants, what they need and cost, inputs and outputs, where it comes from.

    Examples:
      hedgerow model show bundles/door-1.2.0
      hedgerow model show door/1.2.0 --from models
      hedgerow model show door --from /var/lib/hedgerow --json

    Its files are not looked at: `hedgerow model verify` does that. What `hedgerow model bench` has measured stands below,
    for each kind of machine.
    """
    from hedgerow.models.bundle import bench_results

    with opened(bundle, from_, nothing) as there:
        measured = bench_results.read(bench_results.path_for(there.folder), there.digest)
        if json:
            print_json(_report(there, measured, named=None if from_ else there.folder))
        else:
            _print(there, measured)


def bom(
    bundle: Named,
    from_: From = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default it is printed.")] = None,
) -> None:
    """Write what a bundle is made of as an ML-BOM: CycloneDX 1.6, JSON.

    Examples:
      hedgerow model bom bundles/door-1.2.0 > door.cdx.json
      hedgerow model bom door/1.2.0 --from models --out door.cdx.json

    It has the model with its card (inputs, outputs, data set, metrics), its licence, author and ancestors, its variants with
    what they cost, and every file with its digest. The same bundle makes the same document. Needs `pip install
    'hedgerow[build]'`.
    """
    import orjson

    from hedgerow import disk
    from hedgerow.errors import ConfigError
    from hedgerow.models.bundle.bom import bom as make

    with opened(bundle, from_, nothing) as there:
        document = make(there)
    if out is None:
        print_json(document)
        return
    try:
        disk.replace(out, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}", remedy="Give another file.") from error
    typer.echo(f"Wrote {out}.")


def _report(bundle: Bundle, measured: Figures, named: Path | None) -> dict[str, Any]:
    return {
        "folder": str(named) if named else None,
        "digest": bundle.digest,
        "size": total_size(bundle.manifest),
        "manifest": bundle.manifest.model_dump(mode="json", by_alias=True),
        "measured": measured.model_dump(mode="json")["machines"],
    }


def total_size(manifest: Manifest) -> int:
    """Bytes of all files of a bundle, each once."""
    return sum({file.path: file.size for file in manifest.files()}.values())


def _print(bundle: Bundle, measured: Figures) -> None:
    manifest, provenance = bundle.manifest, bundle.manifest.provenance
    print_facts([(f"{manifest.name} {manifest.version}", bundle.digest)])
    if manifest.description:
        print_facts([(manifest.description,)])
    about = {
        "licence": manifest.licence,
        "author": provenance.author,
        "made": " by ".join(filter(None, (provenance.made_at, provenance.made_by))),
        "made from": ", ".join(f"{origin.file} ({origin.digest[:19]})" for origin in provenance.made_from),
        "training data": provenance.training_data,
        "metrics": ", ".join(f"{name} {value:g}" for name, value in provenance.metrics.items()),
        "labels": _labels(manifest.labels),
        **{f"parameters.{name}": human_readable(value) for name, value in manifest.parameters.items()},
        **{f"serving.{name}": human_readable(value) for name, value in manifest.serving.items()},
    }
    print_facts([(name, shorten(text, _LONGEST, placeholder=" …")) for name, text in about.items() if text])
    _tensors(manifest)
    typer.echo("")
    headings = ("VARIANT", ">SIZE", ">MEMORY", "RUNS ON", "TOLERANCE", "COST")
    rows = [
        (
            variant.name,
            size(sum(file.size for file in variant.files)),
            size(variant.needs.memory_bytes),
            f"{', '.join(variant.needs.backends)} on {', '.join(variant.needs.devices)}",
            _tolerance(variant.tolerance),
            cost(variant.accuracy),
        )
        for variant in manifest.variants
    ]
    print_table(headings, rows, spare=("TOLERANCE",))
    typer.echo("")
    baseline = f"statistics of {plural(manifest.baseline.samples, 'sample')}" if manifest.baseline else "no statistics"
    typer.echo(f"{plural(len(manifest.golden), 'golden case')}, {baseline}, {size(total_size(manifest))}.")
    for machine in measured.machines:
        typer.echo("")
        print_figures(machine)


def _tensors(manifest: Manifest) -> None:
    if not manifest.inputs and not manifest.outputs:
        return
    baseline = manifest.baseline
    headings = ("", "TENSOR", "TYPE", ">MEAN", ">DEVIATION", ">RANGE")
    rows = []
    for kind, tensors, known in (
        ("in", manifest.inputs, baseline.inputs if baseline else {}),
        ("out", manifest.outputs, baseline.outputs if baseline else {}),
    ):
        for tensor in tensors:
            seen = known.get(tensor.name)
            row = (kind, tensor.name, tensor_type(tensor))
            if seen is None:
                rows.append((*row, "-", "-", "-"))
            else:
                spread = f"{seen.minimum:.4g} to {seen.maximum:.4g}"
                rows.append((*row, f"{seen.mean:.4g}", f"{seen.deviation:.4g}", spread))
    typer.echo("")
    print_table(headings, rows, names=2)


def tensor_type(tensor: Tensor) -> str:
    """`float32[?, 3, 320, 320]`."""
    return f"{tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"


def _tolerance(tolerance: Tolerance) -> str:
    outliers = f", but for {tolerance.outliers:.1%}" if tolerance.outliers else ""
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
    """What was measured on a machine."""
    print_facts([(f"Measured on {machine.machine}, {machine.at}",)])
    headings = ("VARIANT", "DEVICE", "BACKEND", ">STREAMS", ">THREADS", ">BATCH", ">FRAMES/S", ">MS ALONE")
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
    print_table(headings, rows, names=2, spare=("THREADS", "STREAMS", "BATCH"))
    for figure in machine.figures:
        for backend, why in figure.not_run.items():
            print_facts([(f"{figure.variant} on {figure.device} by {backend}:", why)])

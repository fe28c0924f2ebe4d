"""`hedgerow model bench`: measure the variants of a bundle on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import echo, print_json
from hedgerow.cli.base.options import Json, MaxBatch, MeasuringTime
from hedgerow.cli.model.lookup import BundleName, From, all_files, open_bundle
from hedgerow.cli.model.show import print_figures
from hedgerow.cli.model.tune import progress_bar
from hedgerow.errors import ConfigError

if TYPE_CHECKING:
    from hedgerow.models.build.bench import DeviceBenchmark
    from hedgerow.models.bundle.bench_results import Figure


def bench(
    bundle: BundleName,
    from_: From = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", "-v", help="Measure only this variant. Repeatable.")
    ] = None,
    seconds: MeasuringTime = 30,
    max_batch: MaxBatch = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Cores to use; by default all that this process may use.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File for the results; by default BUNDLE.bench.json beside the bundle."),
    ] = None,
    save: Annotated[bool, typer.Option(help="Save the results.")] = True,
    json: Json = False,
) -> None:
    """Find the fastest backend, streams and batch for each variant of a bundle on this machine, as `hedgerow tune` does.

    Examples:
      hedgerow model bench bundles/door-1.2.0
      hedgerow model bench bundles/door-1.2.0 --variant openvino-int8 --seconds 60
      hedgerow model bench door/1.2.0 --from models --out door.bench.json

    The inputs are the golden inputs. The newest results of each machine type (processor and cores) are saved in a file
    beside the bundle, as a signed bundle must not change; `hedgerow model show` prints them. Measure on an otherwise idle
    machine. To configure a node, run `hedgerow tune` on it instead.

    Exits with 1 if no variant can be measured here.
    """
    from hedgerow.backends import tuned
    from hedgerow.backends.cores import cores as owned_cores
    from hedgerow.models.build import bench as benching
    from hedgerow.models.build.provenance import tools
    from hedgerow.models.bundle import bench_results

    cores = threads or owned_cores()
    measured: list[DeviceBenchmark] = []
    with open_bundle(bundle, from_, all_files) as source:
        chosen = [source.manifest.variant(name) for name in variant] if variant else list(source.manifest.variants)
        source.verify()
        with progress_bar(quiet=json) as progress:
            for number, one in enumerate(chosen):

                def report(done: float, finished: int = number) -> None:
                    if progress is not None:
                        progress((finished + done) / len(chosen))

                measured += benching.bench(
                    source, one, cores=cores, seconds=seconds / len(chosen), max_batch=max_batch, progress=report
                )
        machine = bench_results.Machine(
            machine=tuned.machine(cores),
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            tools=tools(),
            figures=tuple(map(_figure, measured)),
        )
        path = out or (bench_results.path_for(source.folder) if save and from_ is None else None)
        if path is not None:
            try:
                bench_results.add(path, source.digest, machine)
            except OSError as error:
                raise ConfigError(
                    f"Cannot write {path}: {error.strerror}", remedy="Name another file with --out, or use --no-save."
                ) from error
        if json:
            saved = str(path) if path else None
            print_json({"digest": source.digest, **machine.model_dump(mode="json"), "kept": saved})
        else:
            print_figures(machine)
            if path is not None:
                echo(f"\nSaved to {path}.")
    if not any(figure.backend for figure in machine.figures):
        raise typer.Exit(1)


def _figure(benched: DeviceBenchmark) -> Figure:
    from hedgerow.models.bundle.bench_results import Figure

    tuning, not_run = benched.tuning, dict(benched.not_run)
    if tuning is None or tuning.choice is None:
        return Figure(
            variant=benched.variant, device=benched.device, not_run={**not_run, **(tuning.refused if tuning else {})}
        )
    choice = tuning.choice
    single_stream = [
        setting.time_s
        for setting in tuning.settings
        if setting.backend == choice.backend and setting.streams == 1 and setting.times_s
    ]
    return Figure(
        variant=benched.variant,
        device=benched.device,
        backend=choice.backend,
        streams=choice.streams,
        threads=choice.threads,
        batch=choice.max_batch,
        frames_per_s=choice.rows_per_s,
        single_s=min(single_stream, default=None),
        not_run={**not_run, **tuning.refused},
    )

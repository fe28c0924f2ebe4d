"""`hedgerow model bench`: how fast the variants of a bundle are on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import print_json
from hedgerow.cli.base.options import Json, MaxBatch, MeasuringTime
from hedgerow.cli.model.lookup import From, Named, everything, opened
from hedgerow.cli.model.show import print_figures
from hedgerow.cli.model.tune import progress_bar
from hedgerow.errors import ConfigError

if TYPE_CHECKING:
    from hedgerow.models.build.bench import DeviceBenchmark
    from hedgerow.models.bundle.bench_results import Figure


def bench(
    bundle: Named,
    from_: From = None,
    variant: Annotated[list[str] | None, typer.Option("--variant", "-v", help="Measure only this one.")] = None,
    seconds: MeasuringTime = 30,
    max_batch: MaxBatch = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to use; by default all of this process.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep the figures here; by default in BUNDLE.bench.json beside it."),
    ] = None,
    save: Annotated[bool, typer.Option(help="Keep the figures at all.")] = True,
    json: Json = False,
) -> None:
    """Measure each variant of a bundle on this machine: backend, streams and batch, as `hedgerow tune` does.

    Examples:
      hedgerow model bench bundles/door-1.2.0
      hedgerow model bench bundles/door-1.2.0 --variant openvino-int8 --seconds 60
      hedgerow model bench door/1.2.0 --from models --out door.bench.json

    It is fed with the golden inputs. Figures are kept by kind of machine (processor and cores), the newest of each, in a
    file beside the bundle: a bundle is signed and does not change. `hedgerow model show` shows them. Measure on a machine
    that does nothing else. What a node runs best is found there, by `hedgerow tune`.

    Exits with 1 if no variant can be measured here.
    """
    from hedgerow.backends import tuned
    from hedgerow.backends.cores import cores as owned_cores
    from hedgerow.models.build import bench as benching
    from hedgerow.models.build.provenance import tools
    from hedgerow.models.bundle import bench_results

    cores = threads or owned_cores()
    found: list[DeviceBenchmark] = []
    with opened(bundle, from_, everything) as there:
        chosen = [there.manifest.variant(name) for name in variant] if variant else list(there.manifest.variants)
        there.verify()
        with progress_bar(quiet=json) as progress:
            for number, one in enumerate(chosen):

                def told(done: float, begun: int = number) -> None:
                    if progress is not None:
                        progress((begun + done) / len(chosen))

                found += benching.bench(
                    there, one, cores=cores, seconds=seconds / len(chosen), max_batch=max_batch, progress=told
                )
        machine = bench_results.Machine(
            machine=tuned.machine(cores),
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            tools=tools(),
            figures=tuple(map(_figure, found)),
        )
        path = out or (bench_results.path_for(there.folder) if save and from_ is None else None)
        if path is not None:
            try:
                bench_results.add(path, there.digest, machine)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written: {error.strerror}", remedy="Give another file with --out, or --no-save."
                ) from error
        if json:
            print_json({"digest": there.digest, **machine.model_dump(mode="json"), "kept": str(path) if path else None})
        else:
            print_figures(machine)
            if path is not None:
                typer.echo(f"\nKept in {path}.")
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
    alone = [
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
        single_s=min(alone, default=None),
        not_run={**not_run, **tuning.refused},
    )

"""`hedgerow topology`: one description of a region, its sites and nodes, and all the files that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.base.options import Json

File = Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology (YAML). `configs/topology.yaml` is one.")]


def check(file: File, json: Json = False) -> None:
    """Find everything that is wrong with a topology, at once; nothing is written.

    Examples:
      hedgerow topology check topology.yaml
      hedgerow topology check topology.yaml --json

    The base files it names are checked too, with what each node changes. What is valid and probably not meant, such as a
    sensor that no pipeline listens to, is a remark. Exits with 2 if anything is wrong.
    """
    from hedgerow.configfile import BadConfigFile
    from hedgerow.topology.check import remarks
    from hedgerow.topology.load import load

    report: dict[str, Any] = {"file": str(file), "ok": True, "problems": [], "remarks": []}
    try:
        described = load(file)
        report["sites"] = {site: list(place.nodes) for site, place in described.topology.sites.items()}
        report["remarks"] = list(remarks(described.topology, described.nodes))
    except BadConfigFile as error:
        report |= {"ok": False, "problems": error.problems}
    if json:
        print_json(report)
    else:
        _print_report(report)
    if not report["ok"]:
        raise typer.Exit(2)


def _print_report(report: dict[str, Any]) -> None:
    file = report["file"]
    if report["ok"]:
        nodes = sum(map(len, report["sites"].values()))
        typer.echo(
            f"{file}: {typer.style('ok', fg='green')} ({plural(len(report['sites']), 'site')}, {plural(nodes, 'node')})"
        )
    for problem in report["problems"]:
        typer.echo(f"{file}:{problem.line or 1}: {typer.style('error:', fg='red', bold=True)} {problem}", err=True)
        typer.echo(f"  → {problem.remedy}", err=True)
    for remark in report["remarks"]:
        typer.echo(f"{typer.style('remark:', fg='yellow')} {remark}", err=True)


def render(
    file: File,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the files; one folder a site below it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Write over files that were edited by hand.")] = False,
    json: Json = False,
) -> None:
    """Write all files that a region and its sites need: brokers, who may do what, bridges, nodes, units.

    Examples:
      hedgerow topology render topology.yaml --out rendered
      hedgerow topology render topology.yaml --out rendered --force

    The same topology gives the same bytes, so the folder can be kept under version control and a difference means a
    change. Each file begins with a digest of itself: one that was edited by hand is never written over without --force,
    and then nothing is written at all (exit code 2).
    """
    from hedgerow.topology import files
    from hedgerow.topology.load import load
    from hedgerow.topology.render import render as rendered

    described = load(file)
    written = files.write(rendered(described), described.source, out, force=force)
    files.copy_models(described.models, out)
    if json:
        print_json(
            {name: [str(path) for path in getattr(written, name)] for name in ("made", "changed", "same", "left")}
        )
        return
    for word, paths in (("made", written.made), ("changed", written.changed)):
        for path in paths:
            typer.echo(f"{word:<8} {path}")
    for path in written.left:
        typer.echo(f"left     {path}: no longer in the topology; remove it when its machine is gone")
    typer.echo(
        f"{plural(len(written.made) + len(written.changed), 'file')} written, {len(written.same)} unchanged in {out}."
    )


def schema() -> None:
    """Print the JSON Schema of topologies, for editors.

    Examples:
      hedgerow topology schema > topology.schema.json
    """
    from hedgerow import configfile
    from hedgerow.topology.model import Topology

    print_json(configfile.schema(Topology))

"""`hedgerow topology`: checks the description of a region, its sites and nodes, and generates all files from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json, style
from hedgerow.cli.base.options import Json

File = Annotated[
    Path, typer.Argument(metavar="TOPOLOGY", help="The topology (YAML); `configs/topology.yaml` is an example.")
]


def check(file: File, json: Json = False) -> None:
    """Find every mistake in a topology, all at once. Writes nothing.

    Examples:
      hedgerow topology check topology.yaml
      hedgerow topology check topology.yaml --json

    The base files it names are checked too, with each node's changes. A remark names something valid but probably not
    intended, such as a sensor that no pipeline subscribes to. Exits with 2 if anything is wrong.
    """
    from hedgerow.configfile import BadConfigFile
    from hedgerow.topology.check import loose_images, remarks
    from hedgerow.topology.load import load

    report: dict[str, Any] = {"file": str(file), "ok": True, "problems": [], "remarks": []}
    try:
        loaded = load(file)
        report["sites"] = {site: list(place.nodes) for site, place in loaded.topology.sites.items()}
        report["remarks"] = list(remarks(loaded.topology, loaded.nodes))
        if images := loose_images(loaded.topology):
            report["remarks"].append(
                f"{', '.join(images)}: a tag can be given to another image; name a digest, as `make images` and "
                "`podman image inspect` print it"
            )
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
        echo(f"{file}: {style('ok', fg='green')} ({plural(len(report['sites']), 'site')}, {plural(nodes, 'node')})")
    for problem in report["problems"]:
        echo(f"{file}:{problem.line or 1}: {style('error:', fg='red', bold=True)} {problem}", err=True)
        echo(f"  → {problem.remedy}", err=True)
    for remark in report["remarks"]:
        echo(f"{style('remark:', fg='yellow')} {remark}", err=True)


def render(
    file: File,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files, with a folder per site.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were edited by hand.")] = False,
    json: Json = False,
) -> None:
    """Write all files that a region and its sites need: brokers, access lists, bridges, nodes, units.

    Examples:
      hedgerow topology render topology.yaml --out rendered
      hedgerow topology render topology.yaml --out rendered --force

    The same topology gives the same bytes, so with the folder under version control, a difference means a change. Each file
    begins with its own digest: if any was edited by hand, nothing is written without --force (exit code 2).
    """
    from hedgerow.topology import files
    from hedgerow.topology.load import load
    from hedgerow.topology.render import render as rendered

    loaded = load(file)
    written = files.write(rendered(loaded), loaded.source, out, force=force)
    files.copy_models(loaded.models, out)
    if json:
        print_json(
            {
                "made": [str(path) for path in written.created],
                "changed": [str(path) for path in written.changed],
                "same": [str(path) for path in written.unchanged],
                "left": [str(path) for path in written.obsolete],
            }
        )
        return
    for word, paths in (("created", written.created), ("changed", written.changed)):
        for path in paths:
            echo(f"{word:<8} {path}")
    for path in written.obsolete:
        echo(f"obsolete {path}: no longer in the topology; delete it once its machine is gone")
    echo(
        f"{plural(len(written.created) + len(written.changed), 'file')} written, {len(written.unchanged)} unchanged in {out}."
    )


def schema() -> None:
    """Print the JSON Schema of topologies, for editors.

    Examples:
      hedgerow topology schema > topology.schema.json
    """
    from hedgerow import configfile
    from hedgerow.topology.model import Topology

    print_json(configfile.schema(Topology))

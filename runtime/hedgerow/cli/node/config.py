"""`hedgerow config`: checks configuration files, and prints their JSON Schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.base.options import Json


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Configuration files.")], json: Json = False
) -> None:
    """Find every mistake in configuration files, all at once.

    Examples:
      hedgerow config check node.yaml
      hedgerow config check configs/*.yaml --json

    Besides the file, this checks what it names on this machine: stages, their settings, models and their files. It loads
    no model and connects to no broker; `hedgerow doctor --config FILE` does. Exits with 2 if anything is wrong.
    """
    from hedgerow import configcheck
    from hedgerow.configfile import BadConfigFile

    reports: list[dict[str, Any]] = []
    for file in files:
        report: dict[str, Any] = {"file": str(file), "ok": True, "problems": [], "warnings": []}
        try:
            config = configcheck.load(file)
            report |= {"pipelines": sorted(config.pipelines), "models": sorted(config.models)}
            report["warnings"] = [
                {"field": former, "message": "has a new name", "remedy": f"Rename it to `{current}`."}
                for former, current in config.renamed_keys.items()
            ]
        except BadConfigFile as error:
            report |= {"ok": False, "problems": error.problems}
        reports.append(report)
        if not json:
            _print_report(report)
    if json:
        print_json(reports)
    if not all(report["ok"] for report in reports):
        raise typer.Exit(2)


def _print_report(report: dict[str, Any]) -> None:
    file = report["file"]
    if report["ok"]:
        ok = typer.style("ok", fg="green")
        typer.echo(
            f"{file}: {ok} ({plural(len(report['pipelines']), 'pipeline')}, {plural(len(report['models']), 'model')})"
        )
    for warning in report["warnings"]:
        yellow = typer.style("warning:", fg="yellow", bold=True)
        typer.echo(f"{file}: {yellow} {warning['field']}: {warning['message']}\n  → {warning['remedy']}", err=True)
    for problem in report["problems"]:
        typer.echo(f"{file}:{problem.line or 1}: {typer.style('error:', fg='red', bold=True)} {problem}", err=True)
        typer.echo(f"  → {problem.remedy}", err=True)


def schema() -> None:
    """Print the JSON Schema of configuration files, for editors.

    Examples:
      hedgerow config schema > node.schema.json

    For the YAML language server, make this the first line of a file:

      # yaml-language-server: $schema=node.schema.json
    """
    from hedgerow import configfile

    print_json(configfile.schema())

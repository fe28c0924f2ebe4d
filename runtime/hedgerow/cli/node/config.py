"""`hedgerow config`: checks configuration files, and prints their JSON Schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json, style
from hedgerow.cli.base.options import Json

if TYPE_CHECKING:
    from hedgerow.config import NodeConfig
    from hedgerow.configfile import Problem


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Configuration files.")], json: Json = False
) -> None:
    """Find every mistake in configuration files, all at once.

    Examples:
      hedgerow config check node.yaml
      hedgerow config check configs/*.yaml --json

    Besides the file, this checks what it names on this machine: stages, their settings, models and their files. It sets
    up the stages, loads their models, and finds a stage that does not take what the stages before it give. It connects
    to no broker; `hedgerow doctor --config FILE` does. Exits with 2 if anything is wrong.
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
            problems, unchecked = _check_chains(file, config)
            report |= {"ok": not problems, "problems": problems, "warnings": report["warnings"] + unchecked}
        except BadConfigFile as error:
            report |= {"ok": False, "problems": error.problems}
        reports.append(report)
        if not json:
            _print_report(report)
    if json:
        print_json(reports)
    if not all(report["ok"] for report in reports):
        raise typer.Exit(2)


def _check_chains(file: Path, config: NodeConfig) -> tuple[list[Problem], list[dict[str, str]]]:
    """Return the stages that do not fit their chain, and a warning for each chain that cannot be checked whole here."""
    from hedgerow.configfile import Document, Problem
    from hedgerow.pipeline.chain.check import check_chains

    problems: list[Problem] = []
    unchecked: list[dict[str, str]] = []
    document = Document.read(file)
    for pipeline, position, error, is_problem, remedy in check_chains(config, file.parent):
        if error is None:
            continue
        stage = config.pipelines[pipeline].stages[position].name
        keys = ("pipelines", pipeline, "stages", position, stage)
        field = ".".join(map(str, keys))
        if is_problem:
            problems.append(Problem(document.line_of(keys), field, str(error), remedy))
        else:
            message = f"not checked from here on: {error}"
            unchecked.append({"field": field, "message": message, "remedy": remedy})
    return problems, unchecked


def _print_report(report: dict[str, Any]) -> None:
    file = report["file"]
    if report["ok"]:
        ok = style("ok", fg="green")
        echo(f"{file}: {ok} ({plural(len(report['pipelines']), 'pipeline')}, {plural(len(report['models']), 'model')})")
    for warning in report["warnings"]:
        yellow = style("warning:", fg="yellow", bold=True)
        echo(f"{file}: {yellow} {warning['field']}: {warning['message']}\n  → {warning['remedy']}", err=True)
    for problem in report["problems"]:
        echo(f"{file}:{problem.line or 1}: {style('error:', fg='red', bold=True)} {problem}", err=True)
        echo(f"  → {problem.remedy}", err=True)


def schema() -> None:
    """Print the JSON Schema of configuration files, for editors.

    Examples:
      hedgerow config schema > node.schema.json

    For the YAML language server, make this the first line of a file:

      # yaml-language-server: $schema=node.schema.json
    """
    from hedgerow import configfile

    print_json(configfile.schema())

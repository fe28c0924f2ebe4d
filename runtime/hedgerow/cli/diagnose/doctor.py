"""`hedgerow doctor`: checks whether this machine, its broker and its configuration can run a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, style
from hedgerow.cli.base.options import BrokerConfig, BrokerUrl, Json
from hedgerow.cli.base.tables import elided, hanging_indent, terminal_width

if TYPE_CHECKING:
    from hedgerow.cli.diagnose.checks import CheckResult

_COLORS: Final = {"ok": "green", "warning": "red", "failed": "red"}


def doctor(broker: BrokerUrl = None, config: BrokerConfig = None, json: Json = False) -> None:
    """Check this machine, its backends, the broker and, with --config, the models of a node.

    Examples:
      hedgerow doctor
      hedgerow doctor --config node.yaml
      hedgerow doctor --broker mqtts://broker.site.lan:8883 --json

    Prints a line per check, with a remedy below each that is not ok. Exits with 1 if a check failed; a warning may be
    intended. An unreachable broker is a failure if its address was set (--broker, the file, the environment), and a
    warning if it is the default.
    """
    from hedgerow.cli.diagnose.checks import run_checks

    findings = []
    for finding in run_checks(broker, config):
        findings.append(finding)
        if not json:
            print_finding(finding)
    failed = sum(finding.state == "failed" for finding in findings)
    if json:
        print_json({"ok": not failed, "checks": findings})
    else:
        warnings = sum(finding.state == "warning" for finding in findings)
        echo(f"\n{plural(failed, 'check')} failed, {plural(warnings, 'warning')}.")
    if failed:
        raise typer.Exit(1)


def print_finding(finding: CheckResult) -> None:
    """Print a check's result, and its remedy below."""
    width = terminal_width()
    label = f"{finding.state:<8} {finding.check:<13} "
    indent = " " * len(label)
    first, *more = finding.detail.split("\n")
    if finding.state == "ok" and width is not None:
        first = elided(first, max(1, width - len(label)))
    lines = hanging_indent(label, first, width)
    for text in more:
        lines += hanging_indent(indent, text, width)
    if finding.remedy:
        lines += hanging_indent(indent, f"→ {finding.remedy}", width)
    state = style(finding.state, fg=_COLORS[finding.state], bold=finding.state != "ok")
    echo("\n".join([lines[0].replace(finding.state, state, 1), *lines[1:]]))

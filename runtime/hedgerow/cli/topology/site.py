"""`hedgerow site init`: creates a topology, or adds a site to one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo
from hedgerow.cli.topology.edit import add_site
from hedgerow.errors import ConfigError

_NEW: Final = """\
# A region, its sites, their nodes, and who may do what. All files for brokers and nodes are generated from this one:
#
#   hedgerow topology check {file}
#   hedgerow topology render {file} --out rendered
#
# All settings: docs/operator/topology.md, or `hedgerow topology schema`.

region:
  name: {region}
  # Where sites reach the region's broker. TLS, port 8883 by default; for another, write mqtts://HOST:PORT.
  broker: {region_broker}
  # People and services, each with a certificate NAME@region. `viewer` reads, `operator` also sends commands,
  # `collector` (Hedgerow's own services) also acknowledges results and publishes what nodes should run.
  roles:
    collector: [collector]

# Models and pipelines of every node, as in a node's configuration. Sites and nodes can override them.
pipelines: {pipelines}

# Who sends frames to which topics: `NAME: topic`. All others are refused.
sensors: {{}}

# Which results leave the sites: `PIPELINE: true`, or without some fields: `PIPELINE: {{drop: [FIELD]}}`.
up: {{}}

sites:
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology to create or extend.")] = Path(
        "topology.yaml"
    ),
    name: Annotated[str | None, typer.Option("--name", help="The site's name, such as shop-12.")] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", metavar="HOST", help="Host of its broker, as its nodes reach it.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option("--node", help="Name of a node; may be repeated.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="The region's name, for a new file.")] = None,
    region_broker: Annotated[
        str | None,
        typer.Option(
            "--region-broker", metavar="HOST", help="Host of the region's broker, as sites reach it, for a new file."
        ),
    ] = None,
    pipelines: Annotated[
        Path | None,
        typer.Option(
            "--pipelines", metavar="FILE", help="File with its nodes' models and pipelines, relative to the topology."
        ),
    ] = None,
) -> None:
    """Create a topology with one site, or add a site to an existing one.

    Examples:
      hedgerow site init
      hedgerow site init --name shop-13 --broker broker.shop-13.lan --node gateway
      hedgerow site init --name s1 --broker b.lan --region r --region-broker mqtt.r.example --pipelines shop.yaml

    Prompts for each value not given as an option; without a terminal, a missing value is an error. The rest of the file
    is left unchanged, including comments. Exits with 2, and writes nothing, if the site exists or a value is invalid.
    """
    from hedgerow.configfile import Document

    exists = file.exists()
    if exists:
        Document.read(file)
        text = file.read_text("utf-8")
    else:
        region = _ask("--region", region, "A region groups sites under a common broker. Its name?", "main")
        region_broker = _ask(
            "--region-broker", region_broker, "Sites send results to the region's broker over TLS. Its host?", None
        )
    name = _ask("--name", name, "A site is a place with its own network and broker. Its name?", None)
    broker = _ask(
        "--broker", broker, "The site's nodes and sensors reach its broker over TLS. Its host?", f"broker.{name}.lan"
    )
    node = node or _ask("--node", None, "Nodes run the models. Their names, separated by commas?", "gateway").split(",")
    if not exists:
        base_file = _ask(
            "--pipelines",
            str(pipelines) if pipelines is not None else None,
            "Which file has the models and pipelines?",
            "node.yaml",
        )
        text = _NEW.format(file=file, region=region, region_broker=region_broker, pipelines=base_file)
    site: dict[str, Any] = {"broker": broker, "nodes": [each.strip() for each in node]}
    if exists and pipelines is not None:
        site["pipelines"] = str(pipelines)
    updated = add_site(text, file, name, site)
    try:
        file.write_text(updated, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror}", remedy="Choose a folder that you may write to."
        ) from error
    echo(f"{file}: {'added' if exists else 'created with'} site {name}.")
    echo(
        "Next: add its sensors, and the results that may leave it, to the file; then\n"
        f"  hedgerow topology check {file}\n"
        f"  hedgerow pki apply {file} --init --passphrase\n"
        f"  hedgerow topology render {file} --out rendered\n"
        f"rendered/{name}/README.md then says where each file goes and which certificates the site needs."
    )


def _ask(option: str, value: str | None, question: str, default: str | None) -> str:
    if value is not None:
        return value
    if not _interactive():
        raise ConfigError(f"{option} is missing, and there is no terminal to prompt on", remedy=f"Give {option} VALUE.")
    reply: str = typer.prompt(question, default=default)
    return reply


def _interactive() -> bool:
    return sys.stdin.isatty()

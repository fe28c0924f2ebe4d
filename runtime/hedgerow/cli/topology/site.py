"""`hedgerow site init`: begin a topology, or add a site to it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hedgerow.errors import ConfigError

_NEW: Final = """\
# A region, its sites, their nodes, and who may do what. All files for brokers and nodes are made from this one:
#
#   hedgerow topology check {file}
#   hedgerow topology render {file} --out rendered
#
# Everything that may stand here: docs/operator/topology.md, or `hedgerow topology schema`.

region:
  name: {region}
  # Where sites reach the region's broker. TLS, port 8883 unless you write another: mqtts://HOST:PORT.
  broker: {region_broker}
  # People and services, each with a certificate NAME@region. `viewer` reads, `operator` also gives commands,
  # `collector` (Hedgerow's own services) also acknowledges results and says what nodes should run.
  roles:
    collector: [collector]

# What every node runs unless its site or itself says otherwise: models and pipelines, as in a node's configuration.
pipelines: {pipelines}

# Who sends frames, and to which topics: `NAME: topic`. Others are refused.
sensors: {{}}

# Which results leave the sites: `PIPELINE: true`, or only parts of them: `PIPELINE: {{drop: [FIELD]}}`. The rest stays.
up: {{}}

sites:
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology to begin or to add to.")] = Path(
        "topology.yaml"
    ),
    name: Annotated[str | None, typer.Option("--name", help="The site's name: shop-12.")] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", metavar="HOST", help="Where nodes reach its broker.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option("--node", help="A node's name; may be given again.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="The region's name, for a new file.")] = None,
    region_broker: Annotated[
        str | None,
        typer.Option("--region-broker", metavar="HOST", help="Where sites reach the region, for a new file."),
    ] = None,
    pipelines: Annotated[
        Path | None, typer.Option("--pipelines", metavar="FILE", help="What its nodes run, relative to the topology.")
    ] = None,
) -> None:
    """Begin a topology with one site, or add a site to one that is there.

    Examples:
      hedgerow site init
      hedgerow site init --name shop-13 --broker broker.shop-13.lan --node gateway
      hedgerow site init --name s1 --broker b.lan --region r --region-broker mqtt.r.example --pipelines shop.yaml

    What is not given by an option is asked for, with the reason; without a terminal that is an error. What the file says
    already stays as it is, comments too. Exits with 2 if the site is there already or a value is wrong; then nothing is
    written.
    """
    from hedgerow.configfile import Document

    there = file.exists()
    if there:
        Document.read(file)
        text = file.read_text("utf-8")
    else:
        region = _ask("--region", region, "Regions group sites under one broker above them. Its name?", "main")
        region_broker = _ask(
            "--region-broker", region_broker, "Sites send results to the region's broker over TLS. Its host?", None
        )
    name = _ask("--name", name, "A site is one place with a network and a broker of its own. Its name?", None)
    broker = _ask(
        "--broker", broker, "The site's nodes and sensors reach its broker over TLS. Its host?", f"broker.{name}.lan"
    )
    node = node or _ask("--node", None, "Nodes run the models. Their names, with commas?", "gateway").split(",")
    if not there:
        given = _ask(
            "--pipelines",
            str(pipelines) if pipelines is not None else None,
            "Which file has the models and pipelines?",
            "node.yaml",
        )
        text = _NEW.format(file=file, region=region, region_broker=region_broker, pipelines=given)
    site: dict[str, Any] = {"broker": broker, "nodes": [one.strip() for one in node]}
    if there and pipelines is not None:
        site["pipelines"] = str(pipelines)
    added = _with_site(text, file, name, site)
    try:
        file.write_text(added, "utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}", remedy="Choose a folder of yours.") from error
    typer.echo(f"{file}: {'added' if there else 'begun with'} site {name}.")
    typer.echo(
        "Next: name its sensors and what may leave it in the file, then\n"
        f"  hedgerow topology check {file}\n"
        f"  hedgerow pki apply {file} --init --passphrase\n"
        f"  hedgerow topology render {file} --out rendered\n"
        f"rendered/{name}/README.md then says where each file goes and which certificates the site needs."
    )


def _ask(option: str, given: str | None, question: str, default: str | None) -> str:
    if given is not None:
        return given
    if not _somebody_there():
        raise ConfigError(f"{option} is missing, and there is no terminal to ask on", remedy=f"Give {option} VALUE.")
    answer: str = typer.prompt(question, default=default)
    return answer


def _somebody_there() -> bool:
    return sys.stdin.isatty()


def _with_site(text: str, file: Path, name: str, site: dict[str, Any]) -> str:
    """A topology with one more site, checked by itself; base files are not looked at, they may come later."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    from hedgerow.configfile import Document
    from hedgerow.topology.model import Topology

    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    if not isinstance(document.get("sites"), dict):
        document["sites"] = CommentedMap()
    if name in document["sites"]:
        raise ConfigError(f"{file} has a site {name} already", remedy="Take another name, or edit the file.")
    nodes = CommentedSeq(site["nodes"])
    nodes.fa.set_flow_style()
    document["sites"][name] = CommentedMap(site | {"nodes": nodes})
    out = io.StringIO()
    yaml.dump(document, out)
    Document(out.getvalue(), file).as_a(Topology, "topology")
    return out.getvalue()

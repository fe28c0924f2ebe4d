"""`hedgerow`: all verbs, and what their exit codes mean."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

import hedgerow
from hedgerow.cli.base.console import EXIT_CODES
from hedgerow.cli.base.verbs import Group, Verb, app_of

_CONFIG = Group(
    {
        "check": Verb("hedgerow.cli.node.config:check", "Find everything that is wrong with configuration files."),
        "schema": Verb("hedgerow.cli.node.config:schema", "Print the JSON Schema of configuration files."),
    },
    "Check configuration files.",
    """Check configuration files.

    Examples:
      hedgerow config check node.yaml
      hedgerow config schema > node.schema.json
    """,
)

_NODE = Group(
    {
        "run": Verb("hedgerow.cli.node.node:run", "Run a node until it is stopped."),
        "show": Verb("hedgerow.cli.region.nodes:show", "Show all that the region knows of a node."),
        "label": Verb("hedgerow.cli.region.nodes:label", "Set labels of a node, from the region."),
        "pin": Verb("hedgerow.cli.region.nodes:pin", "Let a node serve one version of a model, whatever rollouts say."),
        "unpin": Verb("hedgerow.cli.region.nodes:unpin", "Let rollouts decide again what a node serves."),
    },
    "Run a node; see and label nodes from the region.",
    """Run a node: the process that takes frames from the broker through its pipelines. And, from the region: see what
    nodes run, label them, pin a version.

    Examples:
      hedgerow node run node.yaml
      hedgerow node show shop-12/gateway
      hedgerow node label shop-12/gateway ring=early
    """,
)

_PLUGIN = Group(
    {
        "list": Verb("hedgerow.cli.node.plugin:list_", "List the stages that are installed."),
        "show": Verb("hedgerow.cli.node.plugin:show", "Show what a stage does and what it takes."),
        "test": Verb("hedgerow.cli.node.plugin:try_", "Try whether a stage keeps what stages promise."),
        "new": Verb("hedgerow.cli.node.plugin:new", "Begin a plugin: a package with one stage and its test."),
    },
    "Find, read about, write and try stages.",
    """Find, read about, write and try stages.

    Examples:
      hedgerow plugin list
      hedgerow plugin show motion
      hedgerow plugin new dim-light
      hedgerow plugin test dim-light sample.json --config pipeline.yaml
    """,
)

_TOPOLOGY = Group(
    {
        "check": Verb("hedgerow.cli.topology.topology:check", "Find everything that is wrong with a topology."),
        "render": Verb("hedgerow.cli.topology.topology:render", "Write all files that a region and its sites need."),
        "schema": Verb("hedgerow.cli.topology.topology:schema", "Print the JSON Schema of topologies."),
    },
    "Describe a region and its sites once; make all files from it.",
    """Describe a region, its sites and nodes in one file, and make all others from it.

    Examples:
      hedgerow topology check topology.yaml
      hedgerow topology render topology.yaml --out rendered
    """,
)

_SITE = Group(
    {"init": Verb("hedgerow.cli.topology.site:init", "Begin a topology, or add a site to one.")},
    "Add a site.",
    """Add a site to a region.

    Examples:
      hedgerow site init
      hedgerow site init --name shop-13 --broker broker.shop-13.lan --node gateway
    """,
)

_BROKER = Group(
    {"refusals": Verb("hedgerow.cli.diagnose.broker_refusals:refusals", "Say who tried what a broker refuses.")},
    "Watch a broker.",
    """Watch a broker.

    Examples:
      docker compose logs -f --no-log-prefix broker | hedgerow broker refusals - --acl acl
    """,
)

_REGION = Group(
    {
        "run": Verb("hedgerow.cli.region.region:run", "Collect and keep what comes up from the sites."),
        "status": Verb("hedgerow.cli.region.region:status", "Say how sites and nodes are, and who is silent."),
        "check": Verb(
            "hedgerow.cli.region.region:check", "Find everything that is wrong with a region's configuration."
        ),
    },
    "Run a region's service; see how its sites are.",
    """Run a region's service: what collects results from the sites and keeps them; and see how the sites are.

    Examples:
      hedgerow region run region.yaml
      hedgerow region status
    """,
)

_ROLLOUT = Group(
    {
        "start": Verb("hedgerow.cli.region.rollout:start", "Start one; --dry-run only says what it would do."),
        "status": Verb("hedgerow.cli.region.rollout:status", "Say how far one is, or follow it."),
        "pause": Verb("hedgerow.cli.region.rollout:pause", "Give the change to nobody else for now."),
        "resume": Verb("hedgerow.cli.region.rollout:resume", "Let one that is paused go on."),
        "abort": Verb("hedgerow.cli.region.rollout:abort", "End one, and put nodes back."),
        "history": Verb("hedgerow.cli.region.rollout:history", "List them: what, who, why, what became of it."),
        "check": Verb("hedgerow.cli.region.rollout:check", "Find everything that is wrong with a rollout's file."),
        "schema": Verb("hedgerow.cli.region.rollout:schema", "Print the JSON Schema of rollouts."),
    },
    "Take another version of a model through the fleet, in waves.",
    """Take another version of a model through the fleet: in waves, watched by gates, and back where it does harm. The
    region's service carries it out.

    Examples:
      hedgerow rollout start -f rollout.yaml --dry-run
      hedgerow rollout start -f rollout.yaml --why "faces in poor light"
      hedgerow rollout status --watch
    """,
)

_RESULTS = Group(
    {"query": Verb("hedgerow.cli.region.results:query", "Get results out of a region's store.")},
    "Get results out of a region's store.",
    """Get results out of a region's store.

    Examples:
      hedgerow results query --since 1h
    """,
)

_PKI = Group(
    {
        "init": Verb("hedgerow.cli.pki.pki:init", "Make the root, the region's authority and those of sites."),
        "apply": Verb("hedgerow.cli.pki.apply:apply", "Issue and renew all that a topology needs."),
        "issue": Verb("hedgerow.cli.pki.pki:issue", "Issue a certificate, with a key of its own."),
        "renew": Verb("hedgerow.cli.pki.pki:renew", "Renew certificates that end soon."),
        "revoke": Verb("hedgerow.cli.pki.pki:revoke", "Revoke certificates, and say what to do so that brokers know."),
        "show": Verb("hedgerow.cli.pki.pki:show", "Show all certificates, and how long they count."),
    },
    "Give nodes, brokers and people their identity: certificates.",
    """Give nodes, brokers and people their identity: certificates.

    Examples:
      hedgerow pki apply topology.yaml --init --passphrase
      hedgerow pki init --region plant-7 --site hall-2
      hedgerow pki issue hall-2/broker --host broker.hall-2.lan
      hedgerow pki issue hall-2/gateway
      hedgerow pki renew
      hedgerow pki show
    """,
)

_TRUST = Group(
    {
        "init": Verb("hedgerow.cli.trust.init:init", "Begin a repository of models: keys, and the root for nodes."),
        "key": Verb("hedgerow.cli.trust.init:key", "Make a key to sign with."),
        "add": Verb("hedgerow.cli.trust.trust:add", "Let an owner sign models."),
        "remove": Verb("hedgerow.cli.trust.trust:remove", "Let nothing count any more that an owner has signed."),
        "rotate": Verb("hedgerow.cli.trust.trust:rotate", "Exchange keys of a role or an owner."),
        "sign": Verb("hedgerow.cli.trust.trust:sign", "Sign changes that wait for signatures."),
        "renew": Verb("hedgerow.cli.trust.trust:renew", "Sign anew what a role has signed; withdraw versions."),
        "refresh": Verb(
            "hedgerow.cli.trust.status:refresh", "Let nodes see what was signed, and that it is the newest."
        ),
        "status": Verb("hedgerow.cli.trust.status:status", "Show who may sign what, and what is published."),
    },
    "Say who may sign which models; nodes serve no others.",
    """Say who may sign which models; nodes serve no others.

    Examples:
      hedgerow trust init --dry-run
      hedgerow trust init
      hedgerow trust add vision-team --model door-state --public-key vision-team.pub --key keys/targets.pem
      hedgerow model publish door-state-1.4.0 --to models --key vision-team.pem
      hedgerow trust status
    """,
)

_MODEL = Group(
    {
        "build": Verb("hedgerow.cli.model.build:build", "Make a bundle of a model's file."),
        "show": Verb("hedgerow.cli.model.show:show", "Show what a bundle is."),
        "verify": Verb("hedgerow.cli.model.verify:verify", "Check a bundle's files, and what it computes here."),
        "diff": Verb("hedgerow.cli.model.diff:diff", "Say what is different between two bundles."),
        "bench": Verb("hedgerow.cli.model.bench:bench", "Measure each variant of a bundle on this machine."),
        "bom": Verb("hedgerow.cli.model.show:bom", "Write what a bundle is made of: a CycloneDX ML-BOM."),
        "publish": Verb("hedgerow.cli.model.publish:publish", "Publish a version of a model, signed by its owner."),
        "push": Verb("hedgerow.cli.model.push:push", "Bring a version's files to an OCI registry."),
    },
    "Build models into bundles; look at them, compare, check and publish them.",
    """Build models into bundles; look at them, compare, check and publish them.

    Examples:
      hedgerow model build door.onnx --version 1.0.0 --samples frames.npz
      hedgerow model show bundles/door-1.0.0
      hedgerow model verify bundles/door-1.0.0
      hedgerow model diff bundles/door-1.0.0 bundles/door-1.1.0
      hedgerow model publish door-1.0.0 --to models --key vision-team.pem
    """,
)

_HEDGEROW = Group(
    {
        "demo": Verb("hedgerow.cli.demo.demo:demo", "See real models work on this machine; nothing to set up."),
        "doctor": Verb("hedgerow.cli.diagnose.doctor:doctor", "Check this machine, its broker and its models."),
        "node": _NODE,
        "config": _CONFIG,
        "plugin": _PLUGIN,
        "topology": _TOPOLOGY,
        "site": _SITE,
        "broker": _BROKER,
        "region": _REGION,
        "results": _RESULTS,
        "nodes": Verb("hedgerow.cli.region.nodes:nodes", "List the nodes of a region, and what they provably run."),
        "rollout": _ROLLOUT,
        "audit": Verb("hedgerow.cli.region.nodes:audit", "Say who did what to the fleet, when and why."),
        "pki": _PKI,
        "model": _MODEL,
        "trust": _TRUST,
        "publish": Verb("hedgerow.cli.frames.publish:publish", "Send pictures, sound, video or tables as frames."),
        "watch": Verb("hedgerow.cli.frames.watch:watch", "Watch results come in: rate, latency, what was found."),
        "explain": Verb("hedgerow.cli.frames.explain:explain", "Say where a result came from, or why a frame died."),
        "command": Verb("hedgerow.cli.frames.command:command", "Ask a running node, or a whole site, to do something."),
        "tune": Verb("hedgerow.cli.model.tune:tune", "Measure the fastest way to run a model on this machine."),
    },
    "",
    """Hedgerow: sensor frames in over MQTT, inference at the edge, results out.

    Examples:
      hedgerow doctor
      hedgerow demo
      hedgerow node run node.yaml
      hedgerow publish door.jpg --topic plant/door/image
      hedgerow watch

    The broker is the one of --broker, else of --config, else of HEDGEROW_BROKER__URL, else mqtt://127.0.0.1:1883.
    """,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hedgerow {hedgerow.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app = app_of(
    _HEDGEROW,
    callback=_options,
    epilog="Exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()),
)


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script starts what is in its background like that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app(prog_name="hedgerow")

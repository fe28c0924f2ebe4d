"""The `hedgerow` command: the tree of its verbs, and its entry point."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

import hedgerow
from hedgerow.cli.base.console import EXIT_CODES, echo
from hedgerow.cli.base.verbs import Group, Verb, app_of

_CONFIG = Group(
    {
        "check": Verb("hedgerow.cli.node.config:check", "Find every mistake in configuration files."),
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
        "show": Verb("hedgerow.cli.region.nodes:show", "Show everything the region knows about a node."),
        "pending": Verb("hedgerow.cli.region.enrolment:pending", "List machines that ask to be nodes."),
        "approve": Verb("hedgerow.cli.region.enrolment:approve", "Approve a machine: it becomes a node."),
        "reject": Verb("hedgerow.cli.region.enrolment:reject", "Reject a machine that asks to be a node."),
        "label": Verb("hedgerow.cli.region.nodes:label", "Set a node's labels, from the region."),
        "pipelines": Verb("hedgerow.cli.region.nodes:pipelines", "Have a node run pipelines that an owner has signed."),
        "pin": Verb("hedgerow.cli.region.nodes:pin", "Pin a node to one version of a model; rollouts leave it alone."),
        "unpin": Verb("hedgerow.cli.region.nodes:unpin", "Remove a pin, so that rollouts apply to the node again."),
        "rename": Verb("hedgerow.cli.region.life:rename", "Give a node another name; all of it follows."),
        "move": Verb("hedgerow.cli.region.life:move", "Move a node to another site; all of it follows."),
        "replace": Verb("hedgerow.cli.region.life:replace", "Give a node another machine, and revoke the old key."),
        "forget": Verb("hedgerow.cli.region.life:forget", "Forget a node that is gone; refuse what comes back."),
        "admit": Verb("hedgerow.cli.region.life:admit", "Take a forgotten node in again."),
        "seal": Verb(
            "hedgerow.cli.node.identity:seal", "Make the image of a node's disk clean: no key, name or numbers."
        ),
        "new-identity": Verb("hedgerow.cli.node.identity:new_identity", "Give a copied disk an identity of its own."),
    },
    "Run a node; show and label nodes from the region.",
    """Run a node: the process that takes frames from the broker through its pipelines. Or, from the region,
    show what nodes run, label them, pin a version, and rename, move, replace or forget them.

    Examples:
      hedgerow node run node.yaml
      hedgerow node show shop-12/gateway
      hedgerow node label shop-12/gateway ring=early
    """,
)

_CLAIM = Group(
    {
        "create": Verb("hedgerow.cli.region.claims:create", "Make a claim; its token is shown once."),
        "list": Verb("hedgerow.cli.region.claims:list_", "List claims: where, how often used, until when."),
        "revoke": Verb("hedgerow.cli.region.claims:revoke", "Revoke a claim: nobody can ask with it any more."),
    },
    "Make and revoke claims, with which machines ask to be nodes.",
    """Make and revoke claims, with which machines ask to be nodes: `hedgerow enrol TOKEN` there, `hedgerow node approve` here.

    Examples:
      hedgerow claim create hall --place gateway --out claim.txt
      hedgerow claim list
    """,
)

_PLUGIN = Group(
    {
        "list": Verb("hedgerow.cli.node.plugin:list_", "List the installed stages."),
        "show": Verb("hedgerow.cli.node.plugin:show", "Show what a stage does, and its settings."),
        "test": Verb("hedgerow.cli.node.plugin:try_", "Test a stage against the stage contract."),
        "new": Verb("hedgerow.cli.node.plugin:new", "Create a plugin: a package with one stage and its test."),
    },
    "List, show, create and test stages.",
    """List, show, create and test stages.

    Examples:
      hedgerow plugin list
      hedgerow plugin show motion
      hedgerow plugin new dim-light
      hedgerow plugin test dim-light sample.json --config pipeline.yaml
    """,
)

_TOPOLOGY = Group(
    {
        "check": Verb("hedgerow.cli.topology.topology:check", "Find every mistake in a topology."),
        "render": Verb("hedgerow.cli.topology.topology:render", "Write all files that a region and its sites need."),
        "schema": Verb("hedgerow.cli.topology.topology:schema", "Print the JSON Schema of topologies."),
    },
    "Describe a region and its sites once; generate all files from it.",
    """Describe a region, its sites and nodes in one file, and generate all others from it.

    Examples:
      hedgerow topology check topology.yaml
      hedgerow topology render topology.yaml --out rendered
    """,
)

_SITE = Group(
    {"init": Verb("hedgerow.cli.topology.site:init", "Create a topology, or add a site to one.")},
    "Add a site.",
    """Add a site to a region.

    Examples:
      hedgerow site init
      hedgerow site init --name shop-13 --broker broker.shop-13.lan --node gateway
    """,
)

_BROKER = Group(
    {
        "refusals": Verb(
            "hedgerow.cli.diagnose.broker_refusals:refusals", "Report which clients a broker refused, and why."
        )
    },
    "Monitor a broker.",
    """Monitor a broker.

    Examples:
      docker compose logs -f --no-log-prefix broker | hedgerow broker refusals - --acl acl
    """,
)

_REGION = Group(
    {
        "run": Verb("hedgerow.cli.region.region:run", "Collect and store what the sites send."),
        "status": Verb("hedgerow.cli.region.region:status", "Show the status of sites and nodes."),
        "check": Verb("hedgerow.cli.region.region:check", "Find every mistake in a region's configuration."),
        "backup": Verb("hedgerow.cli.region.backup:backup", "Back up the store and the models while the service runs."),
        "restore": Verb("hedgerow.cli.region.backup:restore", "Put a backup back; nothing is numbered twice."),
    },
    "Run a region's service; show the status of its sites.",
    """Run a region's service, which collects results from the sites and stores them; show the status of the sites.

    Examples:
      hedgerow region run region.yaml
      hedgerow region status
    """,
)

_ROLLOUT = Group(
    {
        "start": Verb("hedgerow.cli.region.rollout:start", "Start a rollout; --dry-run only shows what it would do."),
        "status": Verb("hedgerow.cli.region.rollout:status", "Show the progress of a rollout, or follow it."),
        "pause": Verb("hedgerow.cli.region.rollout:pause", "Pause a rollout: no more nodes get the change."),
        "resume": Verb("hedgerow.cli.region.rollout:resume", "Resume a paused rollout."),
        "abort": Verb("hedgerow.cli.region.rollout:abort", "End a rollout, and roll its nodes back."),
        "history": Verb("hedgerow.cli.region.rollout:history", "List rollouts: what, who, why, and the outcome."),
        "check": Verb("hedgerow.cli.region.rollout:check", "Find every mistake in a rollout's file."),
        "schema": Verb("hedgerow.cli.region.rollout:schema", "Print the JSON Schema of rollouts."),
    },
    "Roll out a version of a model through the fleet, in waves.",
    """Roll out a version of a model through the fleet: in waves, checked by gates, rolled back if too many nodes fail. The
    region's service carries it out.

    Examples:
      hedgerow rollout start -f rollout.yaml --dry-run
      hedgerow rollout start -f rollout.yaml --why "faces in poor light"
      hedgerow rollout status --watch
    """,
)

_RESULTS = Group(
    {"query": Verb("hedgerow.cli.region.results:query", "Query the results in a region's store.")},
    "Query the results in a region's store.",
    """Query the results in a region's store.

    Examples:
      hedgerow results query --since 1h
    """,
)

_PKI = Group(
    {
        "init": Verb("hedgerow.cli.pki.pki:init", "Create the root, and the authorities of the region and its sites."),
        "apply": Verb("hedgerow.cli.pki.apply:apply", "Issue and renew all certificates that a topology needs."),
        "issue": Verb("hedgerow.cli.pki.pki:issue", "Issue a certificate with a new key."),
        "renew": Verb("hedgerow.cli.pki.pki:renew", "Renew certificates that expire soon."),
        "revoke": Verb("hedgerow.cli.pki.pki:revoke", "Revoke certificates, and show how to inform brokers."),
        "show": Verb("hedgerow.cli.pki.pki:show", "Show all certificates, and when they expire."),
    },
    "Issue certificates for nodes, brokers and people.",
    """Issue certificates, which identify nodes, brokers and people.

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
        "init": Verb("hedgerow.cli.trust.init:init", "Create a model repository: keys, and the root file for nodes."),
        "key": Verb("hedgerow.cli.trust.init:key", "Create a signing key."),
        "add": Verb("hedgerow.cli.trust.trust:add", "Let an owner sign models, or pipelines."),
        "remove": Verb("hedgerow.cli.trust.trust:remove", "Remove an owner; nodes no longer trust what it signed."),
        "rotate": Verb("hedgerow.cli.trust.trust:rotate", "Replace the keys of a role or an owner."),
        "sign": Verb("hedgerow.cli.trust.trust:sign", "Sign staged metadata."),
        "renew": Verb(
            "hedgerow.cli.trust.trust:renew", "Sign a role's metadata again before it expires; withdraw versions."
        ),
        "refresh": Verb(
            "hedgerow.cli.trust.status:refresh", "Sign a new timestamp: nodes then see the latest changes."
        ),
        "publish-pipelines": Verb(
            "hedgerow.cli.trust.publish:publish_pipelines", "Publish pipelines for nodes, signed by an owner."
        ),
        "status": Verb("hedgerow.cli.trust.status:status", "Show who may sign what, and what is published."),
    },
    "Define who may sign which models; nodes serve no others.",
    """Define who may sign which models; nodes serve no others.

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
        "build": Verb("hedgerow.cli.model.build:build", "Build a bundle from a model file."),
        "show": Verb("hedgerow.cli.model.show:show", "Show what is in a bundle."),
        "verify": Verb("hedgerow.cli.model.verify:verify", "Verify a bundle's files, and its outputs on this machine."),
        "diff": Verb("hedgerow.cli.model.diff:diff", "Compare two bundles."),
        "bench": Verb("hedgerow.cli.model.bench:bench", "Measure each variant of a bundle on this machine."),
        "bom": Verb("hedgerow.cli.model.show:bom", "Write the bill of materials of a bundle (CycloneDX ML-BOM)."),
        "publish": Verb("hedgerow.cli.model.publish:publish", "Publish a version of a model, signed by its owner."),
        "push": Verb("hedgerow.cli.model.push:push", "Push a version's files to an OCI registry."),
    },
    "Build models into bundles; show, compare, verify and publish them.",
    """Build models into bundles; show, compare, verify and publish them.

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
        "demo": Verb("hedgerow.cli.demo.demo:demo", "See real models work on this machine; no setup needed."),
        "doctor": Verb("hedgerow.cli.diagnose.doctor:doctor", "Check this machine, its broker and its models."),
        "node": _NODE,
        "enrol": Verb("hedgerow.cli.node.enrol:enrol", "Make this machine a node, with the token of a claim."),
        "claim": _CLAIM,
        "config": _CONFIG,
        "plugin": _PLUGIN,
        "topology": _TOPOLOGY,
        "site": _SITE,
        "broker": _BROKER,
        "region": _REGION,
        "results": _RESULTS,
        "nodes": Verb(
            "hedgerow.cli.region.nodes:nodes", "List a region's nodes, their status, and the models they run."
        ),
        "rollout": _ROLLOUT,
        "audit": Verb("hedgerow.cli.region.nodes:audit", "Show who changed what in the fleet, when and why."),
        "pki": _PKI,
        "model": _MODEL,
        "trust": _TRUST,
        "publish": Verb("hedgerow.cli.frames.publish:publish", "Send pictures, sound, video or tables as frames."),
        "watch": Verb("hedgerow.cli.frames.watch:watch", "Watch results arrive: rate, latency, content."),
        "explain": Verb(
            "hedgerow.cli.frames.explain:explain", "Explain where a result came from, or why a frame was dead-lettered."
        ),
        "command": Verb("hedgerow.cli.frames.command:command", "Send a command to a node, or to all nodes of a site."),
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

    The broker is taken from --broker, else --config, else HEDGEROW_BROKER__URL, else it is mqtt://127.0.0.1:1883.
    """,
)


def _version(requested: bool) -> None:
    if requested:
        echo(f"hedgerow {hedgerow.__version__}")
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
    """Run the command line. Ctrl-C ends it quietly, with exit code 130."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs start with SIGINT ignored
    try:
        app(prog_name="hedgerow")
    except KeyboardInterrupt:  # between typer's own handlers
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the interpreter shuts down

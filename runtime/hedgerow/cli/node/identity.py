"""`hedgerow node seal|new-identity`: clean images of a disk, and clones that are meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, print_json
from hedgerow.cli.base.options import Json
from hedgerow.errors import ConfigError

if TYPE_CHECKING:
    from hedgerow.node.identity import IdentityChange, NodePlace

Config = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="The node's configuration (YAML).")]
State = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state folder, if not that of the configuration.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")]


def seal(
    config: Config = None,
    state: State = None,
    discard_results: Annotated[
        bool, typer.Option("--discard-results", help="Delete results that wait for the region, and what is set aside.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the image of a disk clean: what is copied from it has no key, name, client ids or numbers of this node.

    Examples:
      hedgerow node seal node.yaml --dry-run
      hedgerow node seal node.yaml
      hedgerow node seal --state /var/lib/hedgerow --discard-results

    It deletes the key, certificate and password file that the configuration names, the outbox, client token and sessions, and the
    desired state of the region, and takes the name out of the configuration. Models, measurements and trust stay. Afterwards
    `hedgerow node run` refuses until the node has a name. It refuses while a node runs there, and while results wait.

    Killed, run it again: it goes on where it stopped. Deleted files are not overwritten: keep an image of an encrypted disk, or
    seal a disk on which the node has never run.
    """
    from hedgerow.node import identity, state_folder

    place = _place(config, state)
    with state_folder.held(place.state, alone=True):
        change = identity.seal(place, discard_results=discard_results)
        if not dry_run:
            change.carry_out()
    if not _tell(place, change, dry_run=dry_run, json=json):
        return
    if not dry_run:
        echo("Sealed: copies of this disk have no identity. Give each its name and certificate.")


def new_identity(
    config: Config = None,
    state: State = None,
    keep_results: Annotated[
        bool,
        typer.Option("--keep-results", help="Send the results that wait here too, though the original sends its copy."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Give a copied disk an identity of its own: new client ids and new numbers. Run it on the copy, never on the original.

    Examples:
      hedgerow node new-identity node.yaml --dry-run
      hedgerow node new-identity node.yaml

    What waits in the copy's outbox waits in the original's too, which sends it; so it is set aside here, unless --keep-results is
    given: then it is sent twice, by two nodes. Name and certificate are yours to change; the command says which.

    Killed, run it again: it goes on where it stopped. Until then `hedgerow node run` refuses.
    """
    from hedgerow.node import identity, state_folder

    place = _place(config, state)
    with state_folder.held(place.state, alone=True):
        change = identity.new_identity(place, keep_results=keep_results)
        if not dry_run:
            change.carry_out()
    advice = identity.what_else(place)
    if not _tell(place, change, dry_run=dry_run, json=json, change_too=advice):
        return
    if change.kept_as is not None:
        echo(f"What waited is kept as {change.kept_as}. Delete it once the original has sent its copy.")
    echo("Change too, before the node runs:")
    for line in advice:
        echo(f"  {line}")


def _place(config: Path | None, state: Path | None) -> NodePlace:
    from hedgerow import configfile
    from hedgerow.node.identity import NodePlace

    if config is None and state is None:
        raise ConfigError("No node is named", remedy="Give its configuration, or its state folder with --state.")
    settings = None if config is None else configfile.load(config)
    folder = state if state is not None else settings.node.state_dir if settings is not None else Path()
    if not folder.is_dir():
        raise ConfigError(f"There is no state folder {folder}", remedy="Give the right one with --state.")
    return NodePlace(folder.absolute(), config, settings)


def _tell(place: NodePlace, change: IdentityChange, *, dry_run: bool, json: bool, **more: Any) -> bool:
    """Print what was done. Returns: False if that was all, as JSON."""
    steps = [step.what for step in change.steps]
    if json:
        body = {
            "state": str(place.state),
            "config": None if place.file is None else str(place.file),
            "dry_run": dry_run,
        }
        kept_as = None if change.kept_as is None else str(change.kept_as)
        print_json(body | {"steps": steps, "waiting": change.waiting, "aside": change.aside, "kept_as": kept_as} | more)
        return False
    for step in steps:
        echo(f"{'would ' if dry_run else ''}{step}")
    return True

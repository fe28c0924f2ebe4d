"""`hedgerow trust publish-pipelines`: publish pipelines for nodes, signed by an owner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import echo, print_json
from hedgerow.cli.trust.options import RepositoryOptions, SigningKeys, on_repository, signers_of


@on_repository
def publish_pipelines(
    options: RepositoryOptions,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with `pipelines.yaml` and the files that its stages read.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the pipelines, as the owner may sign.")],
    version: Annotated[str, typer.Option("--version", metavar="VERSION", help="Their version, such as 1.0.0.")],
    key: SigningKeys = None,
    selector: Annotated[
        str, typer.Option("--for", metavar="SELECTOR", help="Labels of the nodes they are for; by default all nodes.")
    ] = "",
) -> None:
    """Publish pipelines in a repository, signed by their owner.

    Examples:
      hedgerow trust publish-pipelines doors --name doors --version 1.0.0 --for site=hall-2 --key vision-team.pem

    `pipelines.yaml` has `pipelines:` as in a node's file. Stages read files in FOLDER only, and write none; models are those
    that the node's own file names. A version is immutable. Nodes run the pipelines after `hedgerow node pipelines`, if their
    own file has `remote: {signed_pipelines: true}`.
    """
    from hedgerow.labels import parse_selector
    from hedgerow.pipeline.pipelines_document import collect_pipelines

    content, signers = collect_pipelines(folder, name, version).encode(), signers_of(key, options.secrets)
    done = options.repository.publish_pipelines(name, version, content, signers, parse_selector(selector))
    if options.json:
        print_json(done)
        return
    echo(
        f"Published pipelines {done.name} {done.version} for {done.selector or 'all nodes'}, signed by {done.owner}."
        if done.changed
        else f"{done.name} {done.version} is already published."
    )
    echo(done.digest)
    if not done.live:
        echo(
            "Nodes see it once the region's service has refreshed the timestamp, or after `hedgerow trust refresh` there."
        )

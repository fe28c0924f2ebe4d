"""`hedgerow model publish`: publish a bundle in a repository, signed by its owner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import BundleFolder, Json
from hedgerow.cli.base.progress import byte_progress
from hedgerow.cli.trust.options import OnlineKey, PassphraseFile, open_repository, secrets_of, signers_of


def publish(
    bundle: BundleFolder,
    to: Annotated[Path, typer.Option("--to", metavar="REPOSITORY", help="The repository's folder.")],
    key: Annotated[
        list[str], typer.Option("--key", metavar="KEY", help="The owner's key: a file, or hsm:ID?label=TOKEN.")
    ],
    selector: Annotated[
        str, typer.Option("--for", metavar="SELECTOR", help="Labels of the nodes it is for; by default all nodes.")
    ] = "",
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Publish a model version in a repository, signed by its owner.

    Examples:
      hedgerow model publish door-state-1.4.0 --to models --key vision-team.pem
      hedgerow model publish door-state-1.4.0 --to models --key vision-team.pem --for 'hardware in (nuc, jetson)'
      hedgerow model publish door-state-1.4.0 --to models --key 'hsm:2?label=vision'

    All files are checked first, but the model is not run; use `hedgerow model verify` for that. A version is immutable:
    publishing it again can only change its selector, and different content needs a new version. An interrupted publication
    resumes when you run it again. Nodes serve the version only after a rollout.
    """
    from hedgerow.labels import parse_selector
    from hedgerow.models.bundle.folder import Bundle

    chosen, secrets = parse_selector(selector), secrets_of(passphrase_file)
    repository, opened = open_repository(to, online_key, secrets), Bundle.open(bundle)
    opened.verify()
    signers = signers_of(key, secrets)
    with byte_progress(sum(file.size for file in opened.manifest.files()), "publishing", quiet=json) as progress:
        done = repository.publish(opened, signers, chosen, progress=progress)
    if json:
        print_json(done)
        return
    echo(
        f"Published {done.name} {done.version} for {done.selector or 'all nodes'}, signed by {done.owner}."
        if done.changed
        else f"{done.name} {done.version} is already published."
    )
    echo(f"{done.digest}; {plural(done.chunks, 'new chunk')}, {size(done.bytes)}")
    if not done.live:
        echo(
            "Nodes see it once the region's service has refreshed the timestamp, or after `hedgerow trust refresh` there."
        )

"""`hedgerow model publish`: a bundle into a repository, signed by its owner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import plural, print_json, size
from hedgerow.cli.base.options import BundleFolder, Json
from hedgerow.cli.model.lookup import reading
from hedgerow.cli.trust.options import OnlineKey, PassphraseFile, open_repository, secrets_of, signers_of


def publish(
    bundle: BundleFolder,
    to: Annotated[Path, typer.Option("--to", metavar="REPOSITORY", help="The repository's folder.")],
    key: Annotated[
        list[str], typer.Option("--key", metavar="KEY", help="The owner's key: a file, or hsm:ID?label=TOKEN.")
    ],
    selector: Annotated[
        str, typer.Option("--for", metavar="SELECTOR", help="Nodes it is for, by labels; all, if left out.")
    ] = "",
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Publish a version of a model: into the repository, signed by its owner.

    Examples:
      hedgerow model publish door-state-1.4.0 --to models --key vision-team.pem
      hedgerow model publish door-state-1.4.0 --to models --key vision-team.pem --for 'hardware in (nuc, jetson)'
      hedgerow model publish door-state-1.4.0 --to models --key 'hsm:2?label=vision'

    Every file is checked first; what the model computes, `hedgerow model verify` tries. A version is published once: the
    same again changes nothing, but for whom it is; other content needs a new version. What is stopped in its midst is done
    again from there. No node serves it before a rollout says so.
    """
    from hedgerow.labels import parse_selector
    from hedgerow.models.bundle.folder import Bundle

    chosen, secrets = parse_selector(selector), secrets_of(passphrase_file)
    there, opened = open_repository(to, online_key, secrets), Bundle.open(bundle)
    opened.verify()
    signers = signers_of(key, secrets)
    with reading(sum(file.size for file in opened.manifest.files()), "publishing", quiet=json) as progress:
        done = there.publish(opened, signers, chosen, progress=progress)
    if json:
        print_json(done)
        return
    typer.echo(
        f"Published {done.name} {done.version} for {done.selector or 'all nodes'}, signed by {done.owner}."
        if done.changed
        else f"{done.name} {done.version} was published already."
    )
    typer.echo(f"{done.digest}; {plural(done.chunks, 'new chunk')}, {size(done.bytes)}")
    if not done.live:
        typer.echo("Nodes see it when the region's service takes it in, or after `hedgerow trust refresh` there.")

"""`hedgerow model push`: copy a bundle to an OCI registry, from which nodes can fetch it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import BundleFolder, Json
from hedgerow.cli.base.progress import byte_progress


def push(
    bundle: BundleFolder,
    to: Annotated[str, typer.Argument(metavar="oci://HOST/NAME", help="A repository in a registry.")],
    credentials_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="USER:PASSWORD, a token, or Docker's config.json."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Trusted authorities for the registry's certificate; by default the system's."
        ),
    ] = None,
    token_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Another host that gets the credentials, such as auth.docker.io; repeatable."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Copy a version's files to an OCI registry, so that nodes can fetch them there.

    Examples:
      hedgerow model push door-state-1.4.0 oci://registry.example/models
      hedgerow model push door-state-1.4.0 oci://registry.example/models --credentials-file ~/.docker/config.json
      oras pull registry.example/models:door-state-1.4.0

    Nodes with `fleet: {origins: [oci://registry.example/models]}` try it before they ask the region. This does not publish
    the version: `hedgerow model publish` signs it, and nodes accept signed content from anywhere. An interrupted push
    resumes when you run it again.
    """
    from pydantic import ValidationError

    from hedgerow.blobs.origins import push as oci
    from hedgerow.blobs.origins.origins import web_client
    from hedgerow.config import OriginSection
    from hedgerow.errors import ConfigError
    from hedgerow.models.bundle.folder import Bundle

    try:
        section = OriginSection(
            url=to, ca_file=ca_file, credentials_file=credentials_file, token_hosts=tuple(token_host or ())
        )
    except ValidationError as error:
        raise ConfigError(f"{to} is not the URL of an OCI registry", remedy="Use oci://HOST/NAME.") from error
    if not to.startswith("oci:"):
        raise ConfigError(
            f"{to} is not the URL of an OCI registry",
            remedy="Use oci://HOST/NAME. For a web server, copy the repository's folder there instead.",
        )
    opened = Bundle.open(bundle)
    with byte_progress(sum(file.size for file in opened.manifest.files()), "pushing", quiet=json) as progress:
        done = oci.push(opened, web_client(section), progress)
    if json:
        print_json(done)
        return
    echo(f"{to}:{done.tag}: {plural(done.blobs, 'new blob')}, {size(done.bytes)}.")
    echo(done.digest)

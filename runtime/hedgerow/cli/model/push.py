"""`hedgerow model push`: a bundle to an OCI registry, from which nodes fetch it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import plural, print_json, size
from hedgerow.cli.base.options import BundleFolder, Json
from hedgerow.cli.model.lookup import reading


def push(
    bundle: BundleFolder,
    to: Annotated[str, typer.Argument(metavar="oci://HOST/NAME", help="A repository of a registry.")],
    credentials_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="USER:PASSWORD, a token, or Docker's config.json."),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authorities for its certificate; the system's, if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Bring a version's files to an OCI registry, so that nodes fetch them there.

    Examples:
      hedgerow model push door-state-1.4.0 oci://registry.example/models
      hedgerow model push door-state-1.4.0 oci://registry.example/models --credentials-file ~/.docker/config.json
      oras pull registry.example/models:door-state-1.4.0

    Nodes that have `fleet: {origins: [oci://registry.example/models]}` look there before they ask the region. It publishes
    nothing: `hedgerow model publish` signs a version, and a node takes what is signed, wherever it comes from. What is stopped
    in its midst goes on from there.
    """
    from pydantic import ValidationError

    from hedgerow.blobs.origins import push as oci
    from hedgerow.blobs.origins.origins import web_client
    from hedgerow.config import OriginSection
    from hedgerow.errors import ConfigError
    from hedgerow.models.bundle.folder import Bundle

    try:
        section = OriginSection(url=to, ca_file=ca_file, credentials_file=credentials_file)
    except ValidationError as error:
        raise ConfigError(f"{to} is no registry", remedy="Give oci://HOST/NAME.") from error
    if not to.startswith("oci:"):
        raise ConfigError(
            f"{to} is no registry",
            remedy="Give oci://HOST/NAME. A web server is given a copy of the repository's folder.",
        )
    opened = Bundle.open(bundle)
    with reading(sum(file.size for file in opened.manifest.files()), "pushing", quiet=json) as progress:
        done = oci.push(opened, web_client(section), progress)
    if json:
        print_json(done)
        return
    typer.echo(f"{to}:{done.tag}: {plural(done.blobs, 'new blob')}, {size(done.bytes)}.")
    typer.echo(done.digest)

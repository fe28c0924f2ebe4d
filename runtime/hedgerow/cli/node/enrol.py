"""`hedgerow enrol`: turns this machine into a node of a site."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from hedgerow.cli.base.console import echo, print_json, style
from hedgerow.cli.base.options import Json
from hedgerow.errors import ConfigError

_LONGEST_FILE: Final = 16_384


def enrol(
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOKEN]",
            help="The claim's token, a file with it, or `-` for stdin. Leave it out to go on, or to renew.",
        ),
    ] = None,
    state: Annotated[
        Path,
        typer.Option(
            "--state", metavar="DIR", help="Folder for the node's key, certificates, configuration and state."
        ),
    ] = Path("node"),
    broker: Annotated[
        str | None,
        typer.Option("--broker", metavar="URL", help="Where to ask, if not where the token says: mqtts://HOST:PORT."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="URI",
            help="A key on a PKCS#11 token, made there if it is not: pkcs11:token=LABEL;object=NAME. Default: a file.",
        ),
    ] = None,
    accept_unusable_key: Annotated[
        bool,
        typer.Option(
            "--accept-unusable-key",
            help="With --key: go on although TLS cannot use the key here; the node then cannot connect.",
        ),
    ] = False,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            help="Ask with the certificate that the manufacturer gave this machine, in place of a token.",
        ),
    ] = None,
    certificate_key: Annotated[
        str | None, typer.Option("--certificate-key", metavar="FILE|URI", help="Its key: a PEM file, or pkcs11:….")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site", metavar="SITE", help="The site: with --certificate, or of a node that was moved to another."
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="FILE", help="With --certificate: the region's root certificate, `root.crt`."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ask once; exit with 1 unless it is approved.")] = False,
    json: Json = False,
) -> None:
    """Make this machine a node: make its key, ask, wait for approval, and write its files.

    Examples:
      hedgerow enrol claim.txt --state /var/lib/hedgerow/node
      hedgerow enrol --state /var/lib/hedgerow/node
      hedgerow node run /var/lib/hedgerow/node/node.yaml

    The key is made here and never leaves this machine. An operator makes the claim (`hedgerow claim create`) and approves the machine
    (`hedgerow node approve`), by the fingerprint that is shown here. Interrupt it whenever you like: the next call goes on, and needs
    the token only if the machine has not asked yet. On a node, it renews the certificate if that is due; a running node does so itself.

    With --key the key is made on the token, such as a TPM 2.0, and cannot be read from it. The node's TLS needs OpenSSL's
    pkcs11-provider to use it, and without it this refuses. PYKCS11LIB names the token's module, HEDGEROW_TOKEN_PIN its PIN.

    --certificate needs --certificate-key, --site, --broker and --root the first time:

      hedgerow enrol --certificate device.crt --certificate-key device.key --site hall --broker mqtts://hall.lan:8884 --root root.crt

    A token given as an argument is visible to others on this machine while this runs: better give a file, or `-`.
    """
    from hedgerow.enrolment.claim import Claim, read_claim
    from hedgerow.enrolment.enrol import enrol as become_node
    from hedgerow.enrolment.folder import EnrolmentFolder
    from hedgerow.enrolment.maker import MakerProof, read_maker_proof
    from hedgerow.telemetry import logs

    logs.configure("error")  # each request is a connection; what an operator needs of it is told below

    def told(text: str) -> None:
        if not json:
            echo(text, err=True)

    claim: Claim | MakerProof | None = None if token is None else read_claim(_token(token))
    if certificate is not None:
        if token is not None or certificate_key is None or site is None or broker is None or root is None:
            raise ConfigError(
                "--certificate stands in place of a token, and does not say where to ask",
                remedy="Give --certificate-key, --site, --broker and --root with it, and no token.",
            )
        claim = read_maker_proof(certificate, certificate_key, site, broker, root)
    folder = EnrolmentFolder(state)
    grant = asyncio.run(
        become_node(
            folder, claim, broker=broker, site=site, once=once, told=told, key_uri=key, unusable_key=accept_unusable_key
        )
    )
    if json:
        print_json({"node": grant.node, "configuration": str(folder.configuration), "missing": grant.missing})
        return
    echo(f"This machine is {grant.node}. Start it: hedgerow node run {folder.configuration}")
    for path in grant.missing:
        echo(
            f"{style('remark:', fg='yellow')} {path} is too large to be sent: copy it to {folder.path / path}", err=True
        )


def _token(text: str) -> str:
    if text == "-":
        return sys.stdin.read(_LONGEST_FILE)
    if text.startswith("hc1."):
        return text
    try:
        with Path(text).open(encoding="utf-8") as file:
            return file.read(_LONGEST_FILE)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{text[:80]!r} is neither a token nor a file with one", remedy="Give what `hedgerow claim create` printed."
        ) from error

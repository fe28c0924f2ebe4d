"""`hedgerow enrol`: turns this machine into a node of a site."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, print_json, style
from hedgerow.cli.base.options import Json
from hedgerow.errors import ConfigError

if TYPE_CHECKING:
    from hedgerow.enrolment.answer import Answer
    from hedgerow.enrolment.folder import Enrolment, EnrolmentFolder
    from hedgerow.enrolment.keys import NodeKey

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
    the token only if the machine has not asked yet. On a node, it renews the certificate if that is due; call it daily.

    A token given as an argument is visible to others on this machine while this runs: better give a file, or `-`.
    """
    from hedgerow.enrolment.claim import read_claim
    from hedgerow.enrolment.folder import EnrolmentFolder
    from hedgerow.enrolment.keys import FileKey

    claim = None if token is None else read_claim(_token(token))
    folder = EnrolmentFolder(state)
    enrolment = folder.begin(claim, broker)
    key = FileKey(folder)
    grant = folder.granted(key.public, enrolment.site)
    payload = _request(enrolment, key, claim.id if claim else None, claim.sign if claim else None)
    asyncio.run(_ask(folder, enrolment, key, payload, renews=grant is not None, once=once, quiet=json))
    found = folder.granted(key.public, enrolment.site)
    assert found is not None  # noqa: S101 - `_ask` has installed it
    if json:
        print_json({"node": found.node, "configuration": str(folder.configuration), "missing": found.missing})
        return
    echo(f"This machine is {found.node}. Start it: hedgerow node run {folder.configuration}")
    for path in found.missing:
        echo(
            f"{style('remark:', fg='yellow')} {path} is too large to be sent: copy it to {folder.path / path}", err=True
        )


async def _ask(
    folder: EnrolmentFolder,
    enrolment: Enrolment,
    key: NodeKey,
    payload: bytes,
    *,
    renews: bool,
    once: bool,
    quiet: bool,
) -> None:
    from hedgerow.enrolment.asking import ask_until_decided
    from hedgerow.enrolment.grant import verify_grant
    from hedgerow.enrolment.request import fingerprint
    from hedgerow.errors import CommandError

    def told(text: str) -> None:
        if not quiet:
            echo(text, err=True)

    shown = fingerprint(key.public)
    told(f"Asking {enrolment.broker} to be a node of {enrolment.region}/{enrolment.site}; fingerprint {shown[:16]}.")
    before: tuple[str, str] | None = None
    async for answer in ask_until_decided(enrolment, folder.root_file, payload, told):
        if answer.state == "approved":
            granted = verify_grant(answer.grant, answer.signature, folder.root(), key.public, enrolment.site)
            folder.install(granted, answer.grant, answer.signature)
            return
        if before != (answer.code, answer.detail):
            told(_words(answer, shown))
        before = (answer.code, answer.detail)
        if answer.state != "pending" or once:
            raise CommandError(
                f"This machine is not approved: {answer.state}"
                + (f" ({answer.code}): {answer.detail}" if answer.detail else ""),
                code=answer.code or answer.state,
                remedy="The node goes on with the certificate that it has; ask who operates the region."
                if renews
                else f"In the region: `hedgerow node approve {shown[:16]}`, or make a new claim.",
            )


def _request(enrolment: Enrolment, key: NodeKey, claim: str | None, sign: Any) -> bytes:
    from hedgerow.enrolment.machine import describe_machine
    from hedgerow.enrolment.request import RequestBody, encode_request

    body = RequestBody(
        schema="hedgerow.enrol/1",
        client=enrolment.client,
        region=enrolment.region,
        site=enrolment.site,
        claim=claim,
        csr=key.request(),
        machine=describe_machine(),
    )
    return encode_request(body, key.sign, sign)


def _words(answer: Answer, shown: str) -> str:
    if answer.state == "pending":
        why = f" ({answer.detail})" if answer.detail else ""
        return f"Waiting for approval{why}. In the region: hedgerow node approve {shown[:16]}"
    return f"{answer.state}: {answer.detail or answer.code}"


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

"""Turns a machine into a node: makes its key, asks, and writes its files once it is approved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow.enrolment.answer import Answer
from hedgerow.enrolment.asking import Told, ask_until_decided
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.folder import Enrolment, EnrolmentFolder
from hedgerow.enrolment.grant import BadGrant, NodeGrant, site_of, verify_grant, verify_release
from hedgerow.enrolment.keys import node_key
from hedgerow.enrolment.machine import describe_machine
from hedgerow.enrolment.maker import MakerProof
from hedgerow.enrolment.request import RequestBody, encode_request, fingerprint
from hedgerow.enrolment.token_keys import request_of
from hedgerow.errors import CommandError


async def enrol(
    folder: EnrolmentFolder,
    claim: Claim | MakerProof | None,
    *,
    broker: str | None = None,
    once: bool = False,
    told: Told = lambda _: None,
    machine: Mapping[str, str] | None = None,
    key_uri: str | None = None,
    unusable_key: bool = False,
    site: str | None = None,
    leave: Callable[[NodeGrant], Awaitable[bool]] | None = None,
) -> NodeGrant:
    """Ask until the machine is approved, and write the node's files. Idempotent; may be ended at any point and called again.

    Args:
        claim: what the machine asks with; None: it has asked before.
        broker: where to ask, if not where that says.
        once: ask only once.
        told: called with what happens, for people.
        machine: what it says of itself; None: what this machine is.
        key_uri, unusable_key: see `node_key`.
        site: where the machine is now, if somebody there says that it was moved.
        leave: called before the files are replaced by those of a node of another name; whether they may be.
    Returns: what it was granted.
    Raises:
        CommandError: it is refused or rejected, or with `once` still pending.
        BadGrant: what it was granted is not its region's; nothing was written.
        NotEnrolled: the folder is another node's, or there is no claim.
        PkiError: a file cannot be read or written.
        ConfigError, TokenUnusable: see `node_key`.
    """
    enrolment = folder.begin(claim, broker, site)
    # In threads: a token may take long to sign, and a node that renews its certificate has frames to process.
    key = await asyncio.to_thread(node_key, folder, key_uri or folder.key_uri(), unusable=unusable_key)
    public = key.public_key()
    before = folder.granted(public)
    if before is not None and not folder.complete:
        folder.install_granted(before)  # it was ended while it wrote the files
        enrolment = folder.begin(None, broker, site)
    payload = await asyncio.to_thread(_request, enrolment, key, claim, machine)
    shown = fingerprint(public)[:16]
    where = f"{enrolment.region}/{enrolment.site}"
    told(f"Asking {enrolment.broker} to be a node of {where}; fingerprint {shown}.")
    last = ""
    async for answer in ask_until_decided(enrolment, folder.root_file, payload, told, once=once):
        if answer.state == "approved":
            grant = _granted(answer, folder, public, enrolment.site, before)
            if before is None or grant.node == before.node or leave is None or await leave(grant):
                await asyncio.to_thread(folder.install, grant, answer.grant, answer.signature)
            return grant
        if answer.state != "pending" or once:
            raise _not_approved(answer, shown, renews=before is not None)
        if (words := _words(answer, shown)) != last:
            told(words)
        last = words
    raise CommandError("No answer", code="no-answer", remedy="Try again; the region's service may not be running.")


def _granted(
    answer: Answer, folder: EnrolmentFolder, public: ec.EllipticCurvePublicKey, site: str, before: NodeGrant | None
) -> NodeGrant:
    """Return what an answer grants. Raises: BadGrant: it is not for this machine at this site, nor one it was released to."""
    grant = verify_grant(answer.grant, answer.signature, folder.root(), public, site_of(answer.grant))
    if grant.site != site and before is not None:
        verify_release(answer.grant, answer.release, before)
    elif grant.site != site:
        raise BadGrant(f"The answer is for {grant.node}, not for a node of {site}", remedy="Check the broker.")
    return grant


def _request(
    enrolment: Enrolment,
    key: ec.EllipticCurvePrivateKey,
    proof: Claim | MakerProof | None,
    machine: Mapping[str, str] | None,
) -> bytes:
    claim, maker = (proof if isinstance(proof, Claim) else None), (proof if isinstance(proof, MakerProof) else None)
    body = RequestBody(
        schema="hedgerow.enrol/1",
        client=enrolment.client,
        region=enrolment.region,
        site=enrolment.site,
        claim=None if claim is None else claim.id,
        csr=request_of(key),
        machine=dict(describe_machine() if machine is None else machine),
    )
    return encode_request(
        body,
        lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())),
        None if claim is None else claim.sign,
        None if maker is None else maker.sign,
        () if maker is None else maker.certificates,
    )


def _words(answer: Answer, shown: str) -> str:
    why = f" ({answer.detail})" if answer.detail else ""
    return f"Waiting for approval{why}. In the region: hedgerow node approve {shown}"


def _not_approved(answer: Answer, shown: str, *, renews: bool) -> CommandError:
    why = f" ({answer.code}): {answer.detail}" if answer.detail else ""
    remedy = f"In the region: `hedgerow node approve {shown}`, or make a new claim."
    if renews and answer.state != "pending":
        remedy = "The node goes on with the certificate that it has; ask who operates the region."
    return CommandError(
        f"This machine is not approved: {answer.state}{why}", code=answer.code or answer.state, remedy=remedy
    )

"""Verifies a release with nothing but its public key: `python verify.py FOLDER KEY.pub`.

Needs Python and the package `cryptography`, no network, and nothing of Hedgerow. Take this script and the key from somewhere
else than the folder. Every file must be listed in the signed statement, with its digest, and every listed file must be there.
Exit status: 1 if anything is missing, changed, added, or not signed with this key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key

ENVELOPE = "provenance.dsse.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


class NotVerifiedError(Exception):
    """The release is not what the holder of the key has signed."""


def verify(folder: Path, key: bytes) -> dict[str, Any]:
    """Verify a release.

    Args:
        folder: its files.
        key: the public key, PEM; Ed25519, or ECDSA on P-256 or P-384.
    Returns: the signed statement.
    Raises: NotVerifiedError: a file is missing, changed or added, or the statement is not signed with this key.
    """
    statement = signed_statement((folder / ENVELOPE).read_bytes() if (folder / ENVELOPE).is_file() else b"", key)
    listed = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    problems = [f"{name} is not in the statement" for name in sorted(present - listed.keys() - {ENVELOPE})]
    for name, digest in sorted(listed.items()):
        if name not in present:
            problems.append(f"{name} is missing")
        elif (folder / name).is_symlink() or not (folder / name).is_file():
            problems.append(f"{name} is no regular file")
        elif _sha256(folder / name) != digest:
            problems.append(f"{name} has been changed")
    if problems:
        raise NotVerifiedError("; ".join(problems))
    return statement


def signed_statement(envelope: bytes, key: bytes) -> dict[str, Any]:
    """Return the statement in a DSSE envelope (github.com/secure-systems-lab/dsse). Raises: NotVerifiedError."""
    try:
        outer = json.loads(envelope)
        payload, kind = base64.b64decode(outer["payload"], validate=True), outer["payloadType"]
        signatures = [base64.b64decode(each["sig"], validate=True) for each in outer["signatures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NotVerifiedError(f"{ENVELOPE} is missing or no DSSE envelope") from error
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    if kind != PAYLOAD_TYPE or not any(_is_signature(each, signed, key) for each in signatures):
        raise NotVerifiedError(f"{ENVELOPE} is not signed with this key")
    statement = json.loads(payload)
    if statement.get("_type") != STATEMENT or statement.get("predicateType") != PREDICATE:
        raise NotVerifiedError(f"{ENVELOPE} holds no SLSA provenance")
    return dict(statement)


def _is_signature(signature: bytes, signed: bytes, key: bytes) -> bool:
    public = load_pem_public_key(key)
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, signed)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, signed, ec.ECDSA(hashes.SHA384() if public.key_size == 384 else hashes.SHA256()))
        else:
            raise NotVerifiedError("The key is neither Ed25519 nor ECDSA")
    except InvalidSignature:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Run the command line."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    try:
        statement = verify(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
    except (NotVerifiedError, OSError, ValueError) as error:
        print(
            f"error: {error}\n  → Do not use these files; fetch them again, and compare the key with the one you were given."
        )
        return 1
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    print(f"{len(statement['subject'])} files, as signed.")
    print(f"Commit {definition['externalParameters']['commit']}, built by {details['builder']['id']}.")
    for each in definition["resolvedDependencies"]:
        print(f"  from {each['uri']} {next(iter(each['digest'].values()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

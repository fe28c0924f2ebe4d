"""Describes where this run of a node takes place: host, address, and hashes of what clones of a disk have in common."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from hedgerow.errors import HedgerowError
from hedgerow.text import visible
from hedgerow.wire.messages import Instance

_MACHINE_ID: Final = Path("/etc/machine-id")
_PURPOSE: Final = b"hedgerow instance"
"""Keys the hashes, so that they are of no use elsewhere: machine-id(5) asks not to publish the id itself."""


def hash_of(kind: str, secret: str | bytes) -> str:
    """Return a hash that tells whether two are equal, and nothing else; "" of nothing."""
    data = secret.encode() if isinstance(secret, str) else secret
    return blake2b(kind.encode() + b"\0" + data, key=_PURPOSE, digest_size=12).hexdigest() if data else ""


def machine_hash(path: Path = _MACHINE_ID) -> str:
    """Return a hash of the machine's id, which the operating system makes when it is installed; "" if there is none."""
    with suppress(OSError):
        return hash_of("machine", path.read_text("ascii", errors="replace").strip())
    return ""


def key_hash(cert_file: Path | None) -> str:
    """Return a hash of the public key in a certificate file; "" if there is none."""
    if cert_file is None:
        return ""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # only TLS needs it

    from hedgerow.pki.files import read_certificates

    with suppress(HedgerowError):
        key = read_certificates(cert_file)[0].public_key()
        return hash_of("key", key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return ""


class ThisInstance:
    """Describes the run of the node that this process is.

    Args:
        token: the random token in the state folder.
        cert_file: the certificate that it uses; None: none.
    Attributes:
        now: as of the last `refresh`.
    """

    def __init__(self, token: str, cert_file: Path | None) -> None:
        self._cert_file = cert_file
        self.now = Instance(
            host=visible(platform.node()[:253]),
            machine=machine_hash(),
            state=hash_of("state", token),
            key=key_hash(cert_file),
            started_at=time.time(),
        )

    def refresh(self, address: str) -> None:
        """Look again at what may change. Call it when the link is up.

        Args:
            address: of the machine on its link.
        """
        self.now = self.now.model_copy(update={"address": address, "key": key_hash(self._cert_file)})

"""Describes where this run of a node takes place: host, address, and hashes of what clones of a disk have in common."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from hedgerow.bus.client import Client
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
        client: the node's own link.
    Attributes:
        now: as of the last `refresh`.
    """

    def __init__(self, token: str, client: Client) -> None:
        self._client = client
        self.now = Instance(
            host=visible(platform.node()[:253]),
            machine=machine_hash(),
            state=hash_of("state", token),
            started_at=time.time(),
        )
        self.refresh()

    def refresh(self) -> Instance:
        """Look again at what may change: the address of the link, and the certificate. Call it when the link is up."""
        options = self._client.options
        key = key_hash(options.cert_file) if options.url.startswith(("mqtts:", "wss:")) else ""
        self.now = self.now.model_copy(update={"address": self._client.local_address, "key": key})
        return self.now

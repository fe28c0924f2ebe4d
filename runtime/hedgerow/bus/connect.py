"""Connection options, TLS setup and the transport to a broker."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from hedgerow.bus.causes import unreachable
from hedgerow.bus.packets import Publication
from hedgerow.errors import ConfigError

P = TypeVar("P", bound=asyncio.BaseProtocol)

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Address, credentials and session settings of a broker connection.

    Attributes:
        url: mqtt://HOST[:PORT], mqtts://HOST[:PORT] (TLS) or unix:///path/to/socket.
        client_id: names the session; "" lets the broker choose, and then no session outlives the process.
        username, password: if the broker requires them.
        ca_file: authorities to trust; None: the system's.
        cert_file, key_file: client certificate, if the broker requires one.
        crl_file: revocation lists of all authorities; a broker with a revoked certificate is refused.
        min_tls: oldest accepted TLS version.
        keepalive_s: longest silence before the link counts as dead; 0: unlimited.
        session_expiry_s: how long the broker keeps subscriptions and QoS 1 messages while disconnected.
        clean_start: discard an earlier process's session; reconnects still keep the current one.
        receive_maximum: unacknowledged QoS 1 messages the broker may send.
        max_payload_bytes: a larger payload is skipped and its message marked `oversized`.
        will: published by the broker if the client disconnects unexpectedly.
        session_file: remembers across runs that the broker has this session, to notice if it forgot it; None: not.
        refuse_lower_qos: whether a subscription that is granted with a lower QoS than requested counts as refused.
        connect_timeout_s: limit for name resolution, TLS and CONNACK together.
        min_backoff_s, max_backoff_s: shortest and longest pause between attempts; it doubles, with jitter.
    """

    url: str = "mqtt://127.0.0.1:1883"
    client_id: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    crl_file: Path | None = None
    min_tls: Literal["1.2", "1.3"] = "1.3"
    keepalive_s: int = 30
    session_expiry_s: int = 86_400
    clean_start: bool = False
    receive_maximum: int = 256
    max_payload_bytes: int = 32 * 2**20
    will: Publication | None = None
    session_file: Path | None = None
    refuse_lower_qos: bool = False
    connect_timeout_s: float = 10.0
    min_backoff_s: float = 0.2
    max_backoff_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises: ConfigError: `url` is not a broker address."""
        parse_broker_url(self.url)


async def open_transport(options: ClientOptions, protocol: Callable[[], P]) -> P:
    """Open a connection to the broker, TLS included.

    Raises:
        ConfigError: the address or a certificate file cannot be used.
        BusError: the broker cannot be reached.
    """
    loop = asyncio.get_running_loop()
    host, port = parse_broker_url(options.url)
    try:
        if not port:
            _, link = await loop.create_unix_connection(protocol, host)
            return link
        tls = tls_context(options) if options.url.startswith("mqtts:") else None
        transport, link = await loop.create_connection(protocol, host, port, ssl=tls)
    except (OSError, UnicodeError) as error:  # a host name that cannot be encoded is a UnicodeError
        raise unreachable(options.url, error) from error
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def tls_context(options: ClientOptions) -> ssl.SSLContext:
    """Return a TLS context that checks the broker's name, and revocation if `crl_file` is set.

    Every connection makes its own, so it uses the files as they are then.

    Raises: ConfigError: a certificate file is missing or unreadable.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        context.minimum_version = _VERSIONS[options.min_tls]
        if options.crl_file is not None:
            context.load_verify_locations(options.crl_file)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"Cannot load the certificates for {options.url}: {error}",
            remedy="Check `ca_file`, `cert_file`, `key_file` and `crl_file`: readable PEM files; the key must match the certificate.",
        ) from error
    return context


def parse_broker_url(url: str) -> tuple[str, int]:
    """Return host and port of a broker's URL, or path and 0 for a Unix socket.

    Raises: ConfigError: the URL is invalid.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme == "unix" and parts.netloc + parts.path:
        return parts.netloc + parts.path, 0
    if parts.scheme not in _PORTS or not parts.hostname or port == -1:
        raise ConfigError(
            f"{url!r} is not a broker address",
            remedy="Write mqtt://HOST:PORT, mqtts://HOST:PORT or unix:///path/to/socket.",
        )
    return parts.hostname, port or _PORTS[parts.scheme]

"""Connection options, TLS setup and the transport to a broker."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from hedgerow.bus.causes import unreachable
from hedgerow.bus.packets import Publication, encode_connect
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import ConfigError, keep_secret, without_secrets

P = TypeVar("P", bound=asyncio.BaseProtocol)

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
WEBSOCKET_PATH: Final = "/mqtt"


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Address, credentials and session settings of a broker connection.

    Attributes:
        url: mqtt://HOST[:PORT], mqtts://HOST[:PORT] (TLS), ws://HOST[:PORT][/PATH], wss://HOST[:PORT][/PATH] (WebSocket, with
            TLS) or unix:///path/to/socket.
        client_id: names the session, and whoever knows it can end it (`identity/client_ids.py`); "" lets the broker choose, and then no
            session outlives the process.
        username, password: if the broker requires them.
        password_file: file with the password on its first line, read for every connection; instead of `password`.
        ca_file: authorities to trust; None: the system's.
        cert_file, key_file: client certificate, if the broker requires one.
        crl_file: revocation lists of all authorities; a broker with a revoked certificate is refused.
        min_tls: oldest accepted TLS version.
        keepalive_s: longest silence before the link counts as dead; 0: unlimited.
        session_expiry_s: how long the broker keeps subscriptions and QoS 1 messages while disconnected.
        crash_expiry_s: how long it does after a link that ended without a DISCONNECT; None: as long.
        clean_start: discard an earlier process's session; reconnects still keep the current one.
        receive_maximum: unacknowledged QoS 1 messages the broker may send.
        max_payload_bytes: a larger payload is skipped and its message marked `oversized`.
        will: published by the broker if the client disconnects unexpectedly.
        session_file: remembers across runs that the broker has this session, to notice if it forgot it; None: not.
        set_aside_folder: keeps messages over which the broker ends the link; None: they are only told.
        refuse_lower_qos: whether a subscription that is granted with a lower QoS than requested counts as refused.
        may_connect: asked before each CONNECT, which ends the connection of whoever uses the client id; None: always.
        qos_0_is_enough: whether a broker that accepts QoS 0 only will do.
        connect_timeout_s: limit for name resolution, TLS and CONNACK together.
        min_backoff_s, max_backoff_s: shortest and longest pause between attempts; it doubles, with jitter.
    """

    url: str = "mqtt://127.0.0.1:1883"
    client_id: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    crl_file: Path | None = None
    min_tls: Literal["1.2", "1.3"] = "1.3"
    keepalive_s: int = 30
    session_expiry_s: int = 86_400
    crash_expiry_s: int | None = None
    clean_start: bool = False
    receive_maximum: int = 256
    max_payload_bytes: int = 32 * 2**20
    will: Publication | None = None
    session_file: Path | None = None
    set_aside_folder: Path | None = None
    refuse_lower_qos: bool = False
    may_connect: Callable[[], bool] | None = None
    qos_0_is_enough: bool = False
    connect_timeout_s: float = 10.0
    min_backoff_s: float = 0.2
    max_backoff_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises: ConfigError: `url` is not a broker address."""
        parse_broker_url(self.url)

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.url.startswith(("mqtts:", "wss:"))

    def read_password(self) -> str | None:
        """Return the password; a password file is read again each time.

        Raises: ConfigError: it cannot be read, or is too short.
        """
        password = self.password if self.password_file is None else self._password_in(self.password_file)
        if password is not None:
            keep_secret(password)
        return password

    @staticmethod
    def _password_in(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8").splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The password file {path} cannot be read: {error}",
                remedy="Put the password on its first line and let this user read it.",
                outside="The password file cannot be read",
            ) from error

    @property
    def _session_mark(self) -> bytes:
        return f"{self.client_id} {self.url}".encode()

    def _noted(self) -> bytes:
        with suppress(OSError):
            return b"" if self.session_file is None else self.session_file.read_bytes()
        return b""

    def session_marked(self) -> bool:
        """Return whether an earlier run had a session at this broker, under this client id or, if its token was lost, another."""
        return self._noted().rpartition(b" ")[2] == self.url.encode()

    def session_exists(self) -> bool:
        """Return whether an earlier run had a session at this broker under this client id."""
        return self._noted() == self._session_mark

    def mark_session(self) -> None:
        """Leave a note for the next run that the broker has this session."""
        if self.session_file is None or self.session_exists():
            return
        with suppress(OSError):  # a full or failing disk: the next run will not notice a lost session
            self.session_file.parent.mkdir(parents=True, exist_ok=True)
            self.session_file.touch(mode=0o600)  # it holds the client id
            self.session_file.write_bytes(self._session_mark)

    def unmark_session(self) -> None:
        """Remove the note: the session is given up."""
        if self.session_file is not None:
            with suppress(OSError):
                self.session_file.unlink(missing_ok=True)


def connect_packet(options: ClientOptions, client_id: str, clean_start: bool) -> bytes:
    """Encode the CONNECT of a client.

    Raises: ConfigError: the password file cannot be read.
    """
    properties: dict[Property, int] = {Property.RECEIVE_MAXIMUM: options.receive_maximum}
    if options.session_expiry_s:
        crash_s = options.session_expiry_s if options.crash_expiry_s is None else options.crash_expiry_s
        properties[Property.SESSION_EXPIRY] = min(options.session_expiry_s, crash_s)
    return encode_connect(
        client_id=client_id,
        clean_start=clean_start,
        keepalive_s=options.keepalive_s,
        properties=encode_properties(properties),
        will=options.will,
        username=options.username,
        password=options.read_password(),
    )


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
        tls = tls_context(options) if options.secure else None
        if options.url.startswith("ws"):
            from hedgerow.bus.transport.websocket import open_websocket  # imports a library that only WebSockets need

            return await open_websocket(options.url, WEBSOCKET_PATH, protocol, host, port, tls)
        transport, link = await loop.create_connection(protocol, host, port, ssl=tls)
    except (OSError, UnicodeError) as error:  # a host name that cannot be encoded is a UnicodeError
        raise unreachable(options.url, single_cause(error)) from error
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def single_cause(error: Exception) -> Exception:
    """Return the error of one address, where several of a host were tried: asyncio only joins their messages."""
    numbers = re.findall(r"\[Errno (\d+)\]", str(error)) if "Multiple exceptions" in str(error) else []
    if not numbers:
        return error
    number = max(map(int, numbers), key=lambda number: (number == errno.ECONNREFUSED, number))
    return OSError(number, os.strerror(number))


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
        if options.key_file is not None and _is_on_token(Path(options.key_file)):
            raise ConfigError(
                f"Cannot load the key {options.key_file} for {options.url}: it is on a PKCS#11 token, and {ssl.OPENSSL_VERSION}, "
                f"which this Python uses, has no provider that opens it: {error}",
                remedy="Install OpenSSL's pkcs11-provider, activate it in the file that OPENSSL_CONF names, and set the PIN there; "
                "or use a key in a file, on an encrypted disk.",
            ) from error
        raise ConfigError(
            f"Cannot load the certificates for {options.url}: {error}",
            remedy="Check `ca_file`, `cert_file`, `key_file` and `crl_file`: readable PEM files; the key must match the certificate.",
        ) from error
    return context


def _is_on_token(key_file: Path) -> bool:
    """Whether a key's file is only the name of a key on a token: a PKCS#11 URI (RFC 7512), as such or in pkcs11-provider's PEM."""
    if key_file.name.startswith("pkcs11:"):
        return True
    try:
        with key_file.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return head.startswith(b"pkcs11:") or b"BEGIN PKCS#11 PROVIDER URI" in head


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
            f"{without_secrets(url)!r} is not a broker address",
            remedy="Write mqtt://HOST:PORT, mqtts://HOST:PORT, wss://HOST:PORT/PATH or unix:///path/to/socket; user name and "
            "password have their own settings.",
        )
    return parts.hostname, port or _PORTS[parts.scheme]

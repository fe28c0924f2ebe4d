"""Finds out why a broker cannot be used: the one explanation of a failed connection, for nodes, tools and `doctor`.

A client often sees only that the connection ended. Further attempts tell why: with and without TLS, as MQTT 3.1.1, as HTTP.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64encode
from contextlib import suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from hedgerow.bus.causes import (
    WRONG_NAME,
    closed_at_once,
    hung,
    no_qos,
    not_mqtt,
    only_mqtt_3,
    refused,
    tls_expected,
    tls_unexpected,
    unreachable,
    web_server,
    wrong_name,
)
from hedgerow.bus.connect import (
    WEBSOCKET_PATH,
    ClientOptions,
    connect_packet,
    parse_broker_url,
    single_cause,
    tls_context,
)
from hedgerow.bus.packets import CONNACK, decode_connack
from hedgerow.bus.properties import MalformedPacket, Property
from hedgerow.errors import HedgerowError

ANSWER_WITHIN_S: Final = 5.0
"""How long a broker may leave a connection unanswered before it counts as hung."""

_CONNECT_3: Final = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x0a\x00\x08hedgerow"
"""CONNECT of MQTT 3.1.1, with a clean session."""

_FROM_MQTT_3: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""MQTT 5's reason codes for the return codes of MQTT 3.1.1."""


class _Silent(Exception):
    """The peer accepted the connection, and then sent nothing."""


async def diagnose(options: ClientOptions) -> HedgerowError | None:
    """Connect once, with a client id of its own and without a session, and explain what goes wrong.

    Takes `ANSWER_WITHIN_S` for each attempt, so up to 20 s with a peer that does not answer.

    Returns: the error; None: the broker accepts the connection.
    """
    try:
        return await _Diagnosis(options).run()
    except HedgerowError as error:  # a certificate or password file cannot be used
        return error


class _Diagnosis:
    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._url = options.url
        self._host, self._port = parse_broker_url(options.url)
        self._websocket = options.url.startswith("ws")
        self._tls = tls_context(options) if options.secure else None
        # Without the will, which the broker would publish when the attempt ends.
        plain = replace(options, will=None, session_expiry_s=0)
        self._hello = connect_packet(plain, f"{options.client_id}-check" if options.client_id else "", True)

    async def run(self) -> HedgerowError | None:
        try:
            return await self._judge(await self._talk(self._hello, self._tls))
        except _Silent:
            return await self._silent()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in WRONG_NAME:
                return wrong_name(self._url, await self._names())
            return unreachable(self._url, error)
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError, ConnectionAbortedError) as error:
            return await self._ended(error)
        except (OSError, UnicodeError) as error:
            return unreachable(self._url, single_cause(error))

    async def _judge(self, reply: bytes) -> HedgerowError | None:
        """Explain the first bytes that the peer sent."""
        if not reply:
            return await self._ended(ConnectionResetError("closed"))
        if reply.startswith(b"HTTP/"):
            return web_server(self._url, reply.partition(b"\r\n")[0].decode("ascii", "replace"))
        if reply[:2] == b"\x15\x03":  # a TLS alert
            return tls_expected(self._url)
        if reply[0] != CONNACK or len(reply) < 4:
            return not_mqtt(self._url, reply)
        if reply[1] == 2:  # without properties: MQTT 3
            reason = _FROM_MQTT_3.get(reply[3], reply[3])
            return only_mqtt_3(self._url) if reason in (0, 0x84) else self._refused(reason, "")
        try:
            connack = decode_connack(reply[2 : 2 + reply[1]])
        except MalformedPacket:
            return not_mqtt(self._url, reply)
        if connack.reason:
            return self._refused(connack.reason, connack.properties.get(Property.REASON_STRING, ""))
        needs_more = connack.properties.get(Property.MAXIMUM_QOS) == 0 and not self._options.qos_0_is_enough
        return no_qos(self._url) if needs_more else None

    def _refused(self, reason: int, text: str) -> HedgerowError:
        return refused(self._url, reason, text, self._options.username, self._options.client_id)

    async def _silent(self) -> HedgerowError:
        """Explain a peer that sent nothing: it may wait for the beginning of another protocol."""
        if self._tls is not None:
            if (await self._try(self._hello, None))[:1] == bytes([CONNACK]):
                return tls_unexpected(self._url)
        elif await self._speaks_tls():
            return tls_expected(self._url)
        elif not self._websocket and await self._is_web_server():
            return web_server(self._url)
        return hung(self._url, ANSWER_WITHIN_S)

    async def _ended(self, error: OSError) -> HedgerowError:
        """Explain a connection that ended without a reply."""
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return unreachable(self._url, error)
        if self._tls is None:
            if await self._speaks_tls():
                return tls_expected(self._url)
        else:
            if (alert := await self._tls_alert()) is not None:
                return unreachable(self._url, alert)
            if (reply := await self._try(self._hello, None)) and reply[0] == CONNACK:
                return tls_unexpected(self._url)
            if reply.startswith(b"HTTP/"):
                return web_server(self._url)
        if not self._websocket and (await self._try(_CONNECT_3, self._tls))[:1] == bytes([CONNACK]):
            return only_mqtt_3(self._url)
        if isinstance(error, ssl.SSLError):
            return unreachable(self._url, error)
        return closed_at_once(self._url, self._options.cert_file is not None)

    async def _speaks_tls(self) -> bool:
        context = _unverified()
        try:
            await self._talk(b"", context, read=False)
        except ssl.SSLError as error:  # it speaks TLS and wants something, such as a newer version
            return "ALERT" in (error.reason or "")
        except (OSError, _Silent):
            return False
        return True

    async def _tls_alert(self) -> ssl.SSLError | None:
        """Return the alert by which the broker refuses the client's certificate.

        Nothing is sent after the handshake: a broker that closes meanwhile resets the connection, and the alert is lost.
        """
        try:
            await self._talk(b"", self._tls)
        except ssl.SSLError as error:
            return error if "ALERT" in (error.reason or "") else None
        except (OSError, _Silent):
            pass
        return None

    async def _names(self) -> list[str]:
        """Return the names in the broker's certificate, [] if they cannot be read."""
        from cryptography import x509

        names: list[str] = []
        with suppress(OSError, _Silent, ValueError, x509.ExtensionNotFound):
            _, writer = await asyncio.open_connection(self._host, self._port)
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await writer.start_tls(_unverified(), server_hostname=self._host)
                certificate = x509.load_der_x509_certificate(
                    writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                )
                alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                names = [str(name.value) for name in alternatives]
            finally:
                writer.transport.abort()
        return names

    async def _is_web_server(self) -> bool:
        return (await self._try(b"GET / HTTP/1.0\r\n\r\n", None)).startswith(b"HTTP/")

    async def _try(self, data: bytes, tls: ssl.SSLContext | None) -> bytes:
        """Return the reply to these bytes; empty if there is none."""
        with suppress(OSError, _Silent):
            return await self._talk(data, tls)
        return b""

    async def _talk(self, data: bytes, tls: ssl.SSLContext | None, *, read: bool = True) -> bytes:
        """Connect, send `data` and return the first bytes of the reply; empty: the peer closed the connection.

        Raises:
            _Silent: it accepted the connection, and sent nothing.
            OSError: anything else; a TimeoutError: it did not accept the connection.
        """
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await (
                asyncio.open_connection(self._host, self._port)
                if self._port
                else asyncio.open_unix_connection(self._host)
            )
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                if tls is not None:
                    await writer.start_tls(tls, server_hostname=self._host)
                if not read:
                    return b""
                if self._websocket and data:
                    writer.write(_websocket_request(self._url))
                    reply = await reader.read(4096)
                    if not reply.startswith(b"HTTP/1.1 101"):
                        return reply
                    # One masked binary frame (RFC 6455 §5.2); the mask is zero, so the data stays as it is.
                    writer.write(b"\x82" + _masked_length(len(data)) + bytes(4) + data)
                    return (await reader.read(4096))[2:]  # without the header of the short frame in which the reply is
                writer.write(data)
                return await reader.read(4096)
        except TimeoutError as error:
            raise _Silent from error
        finally:
            writer.transport.abort()


def _websocket_request(url: str) -> bytes:
    """Return the request that opens a WebSocket (RFC 6455 §4.1)."""
    parts = urlsplit(url)
    lines = (
        f"GET {parts.path or WEBSOCKET_PATH} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: mqtt",
    )  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def _masked_length(size: int) -> bytes:
    return bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")


def _unverified() -> ssl.SSLContext:
    """Return a TLS context for a look at a certificate; nothing secret is sent on it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

"""Translates connection failures and MQTT reason codes into errors with remedies."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from hedgerow.bus.packets import reason_name
from hedgerow.errors import BusError, without_token

_CONNECT_REMEDIES: Final = {
    0x84: "Use a broker that speaks MQTT 5, such as Mosquitto 2.",
    0x86: "Check `username` and `password` or `password_file`.",
    0x89: "Wait; the broker is busy. The client keeps retrying.",
    0x8A: "Ask the broker's administrator why this client is banned.",
    0x8E: "Another process of this node runs, or a copy of its state folder: stop it, or delete the copy's `client-token`. "
    "If it is another node of the same name, give each its own (`node: {region, site, name}`).",
    0x8D: "The broker received nothing within the keep-alive time: check the network and this machine's load.",
    0x95: "Publish smaller messages, or raise `max_packet_size` in the broker's configuration.",
    0x97: "Raise the broker's quota, or connect fewer clients.",
    0x9B: "Allow QoS 1 in the broker's configuration (Mosquitto: remove `max_qos 0` from the listener).",
    0x9F: "Wait; the broker limits the connection rate. The client keeps retrying.",
}

_TRANSIENT: Final = frozenset({0x88, 0x89, 0x8B, 0x8D, 0x9F})
"""Reason codes (MQTT 5 §2.4) after which a later attempt may succeed."""

_NOT_OVER_A_MESSAGE: Final = _TRANSIENT | {0x8A, 0x8C, 0x8E, 0x93, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0xA0}
"""Reason codes of a DISCONNECT that have to do with the client, its rate or the broker, not with one message."""

_NEW_CERTIFICATE: Final = "If that is a mistake, issue a new one: `hedgerow pki issue`."

_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": (
        "none was sent",
        "Set `cert_file` and `key_file`: this broker requires a client certificate.",
    ),
    "CERTIFICATE_EXPIRED": (
        "it has expired, or the broker's list of revoked certificates has",
        "Run `hedgerow pki renew`, copy the certificate here and `trust.crl` to the broker; check both machines' clocks.",
    ),
    "CERTIFICATE_REVOKED": ("it is revoked", _NEW_CERTIFICATE),
    "UNKNOWN_CA": (
        "its authority is unknown to the broker, or has no revocation list there",
        "Use a certificate from an authority listed in the broker's `cafile` and `crlfile`.",
    ),
    "BAD_CERTIFICATE": (
        "it is not valid, or not valid yet",
        "Check its dates and the broker's clock. " + _NEW_CERTIFICATE,
    ),
    "UNSUPPORTED_CERTIFICATE": ("it is not meant for clients", _NEW_CERTIFICATE),
    "CERTIFICATE_UNKNOWN": ("the reason is in the broker's log", _NEW_CERTIFICATE),
}
"""TLS alerts (RFC 8446 §6.2) by which a broker refuses a client certificate: the reason, and the remedy."""

_HANDSHAKE_ALERTS: Final = {
    "PROTOCOL_VERSION": "Let both sides allow a common TLS version: `tls: {min_version}` here, `tls_version` at the broker.",
    "HANDSHAKE_FAILURE": "If the broker requires a client certificate, set `cert_file` and `key_file`; else allow a common "
    "cipher on both sides.",
}
"""Other TLS alerts, and the remedy."""

WRONG_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

_NO_REVOCATION_LIST: Final = 3
_REVOKED: Final = 23  # OpenSSL's X509_V_ERR_UNABLE_TO_GET_CRL and X509_V_ERR_CERT_REVOKED

_BY_CLOCK: Final = {
    9: "the broker's certificate is not valid yet, so the clock is probably wrong",
    10: "the broker's certificate has expired",
    11: "a revocation list is not valid yet, so the clock is probably wrong",
    12: "a revocation list has expired",
}
"""OpenSSL's verification errors about time, from X509_V_ERR_CERT_NOT_YET_VALID on."""


class ConnectionFailure(BusError):
    """A connection cannot be made, or was lost.

    Attributes:
        transient: whether a later attempt may succeed although nothing is changed.
        unclear: whether `diagnose` may find a better explanation.
        over_a_message: whether the peer may have ended the link over a message that it received.
    """

    over_a_message = False

    def __init__(self, message: str, *, remedy: str, transient: bool = False, unclear: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.transient = transient
        self.unclear = unclear


class NothingListens(ConnectionFailure):
    """No process listens at the address."""


def unreachable(where: str, error: BaseException) -> ConnectionFailure:
    """Return the error for a failed or lost connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(where, error)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        for alert, (what, remedy) in _ALERTS.items():
            if reason.endswith(alert):
                return ConnectionFailure(f"{where} refused our client certificate: {what}", remedy=remedy)
        for alert, remedy in _HANDSHAKE_ALERTS.items():
            if reason.endswith(alert):
                return ConnectionFailure(f"{where} refused the TLS handshake: {reason}", remedy=remedy)
        return ConnectionFailure(
            f"TLS with {where} failed: {error.reason or error}",
            remedy="Check that the port speaks TLS; if the broker requires a client certificate, check `cert_file` and `key_file`.",
            unclear=True,
        )
    if isinstance(error, socket.gaierror):
        what, remedy = f"{where}: unknown host name ({error.strerror})", "Check the host name and DNS."
    elif isinstance(error, ConnectionRefusedError):
        return NothingListens(
            f"{where} refused the connection: nothing listens there",
            remedy="Start the broker there, or check the port.",
            transient=True,
        )
    elif isinstance(error, FileNotFoundError):
        what, remedy = f"{where}: no such socket", "Start the broker, or check the path."
    elif isinstance(error, PermissionError):
        what, remedy = f"{where}: permission denied", "Give this user read and write access to the socket."
    elif isinstance(error, TimeoutError):
        return ConnectionFailure(
            f"{where} did not answer in time",
            remedy="Check the address, the network and firewalls, and that it is an MQTT 5 broker.",
            transient=True,
            unclear=True,
        )
    elif isinstance(error, ConnectionError):
        return closed_at_once(where, has_certificate=False)
    else:
        what, remedy = f"Cannot reach {where}: {error}", "Check the address and the network."
    return ConnectionFailure(what, remedy=remedy, transient=True)


def _not_trusted(where: str, error: ssl.SSLCertVerificationError) -> ConnectionFailure:
    code = error.verify_code
    if code in _BY_CLOCK:
        return ConnectionFailure(
            f"By this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC), {_BY_CLOCK[code]}: {where}",
            remedy="Check the clock first (`timedatectl`); if it is right, renew the certificates and revocation lists. "
            "The client keeps retrying.",
        )
    if code == _REVOKED:
        return ConnectionFailure(
            f"The certificate of {where} is revoked",
            remedy="Do not connect to it. If that is a mistake, give the broker a new certificate.",
        )
    if code == _NO_REVOCATION_LIST:
        return ConnectionFailure(
            f"`crl_file` has no revocation list of the authority that signed the certificate of {where}",
            remedy="Put the current lists of all authorities into `crl_file`.",
        )
    if code in WRONG_NAME:
        return wrong_name(where, [])
    return ConnectionFailure(
        f"The certificate of {where} is not trusted: {error.verify_message}",
        remedy="Set `tls: {ca_file}` to the authority that signed it.",
    )


def wrong_name(where: str, names: Sequence[str]) -> ConnectionFailure:
    """Return the error for a trusted certificate of another name.

    Args:
        names: in the certificate; empty: not known.
    """
    for_what = f" It is for: {', '.join(names[:10])}." if names else ""
    return ConnectionFailure(
        f"The certificate of {where} is not for this name.{for_what}",
        remedy="Connect by a name that is in the certificate, or issue the broker a certificate for this one.",
        unclear=not names,
    )


def closed_at_once(where: str, has_certificate: bool) -> ConnectionFailure:
    """Return the error for a peer that ends the connection without a reason."""
    # A broker that requires a certificate may close the connection before its alert is read (RFC 8446 §4.4.2.4).
    certificate = (
        ", that `cert_file` and `key_file` are set if it requires a client certificate"
        if where.startswith(("mqtts:", "wss:")) and not has_certificate
        else ""
    )
    return ConnectionFailure(
        f"{where} closed the connection",
        remedy=f"Check that the broker is up, its log (`max_connections exceeded`: it has no room for another client){certificate}, "
        "and that no other node has the same name.",
        transient=True,
        unclear=True,
    )


def hung(where: str, waited_s: float) -> ConnectionFailure:
    """Return the error for a peer that accepts connections and then sends nothing."""
    return ConnectionFailure(
        f"{where} accepts connections but did not answer for {waited_s:g} s: the broker is likely hung",
        remedy="Restart it; durable results wait in the nodes' outboxes. If it hangs again and uses a whole core (`top`): Mosquitto "
        "2.0.11 does so when the far side of a bridge with TLS closes the connection during the handshake; see "
        "docs/operator/delivery.md.",
        transient=True,
    )


def web_server(where: str, status: str = "") -> ConnectionFailure:
    """Return the error for a peer that answers in HTTP.

    Args:
        status: the first line of its answer.
    """
    if where.startswith("ws"):
        return ConnectionFailure(
            f"{where} refused the WebSocket: {status[:80]}",
            remedy="Check the path: many brokers use `/mqtt`, some `/` or `/ws`; a proxy must pass on `Upgrade` headers.",
        )
    return ConnectionFailure(
        f"{where} is a web server, not an MQTT broker",
        remedy="Use the port of the MQTT 5 broker, usually 1883, or 8883 with TLS; if it offers MQTT over WebSocket here: ws:// or wss://.",
    )


def tls_expected(where: str) -> ConnectionFailure:
    """Return the error for a plain connection to a TLS port."""
    scheme, _, rest = where.partition("://")
    return ConnectionFailure(
        f"{where} speaks TLS, but the address is for a connection without it",
        remedy=f"Write {'wss' if scheme == 'ws' else 'mqtts'}://{rest}, and set `tls: {{ca_file}}` to the broker's authority.",
    )


def tls_unexpected(where: str) -> ConnectionFailure:
    """Return the error for a TLS connection to a plain port."""
    scheme, _, rest = where.partition("://")
    return ConnectionFailure(
        f"{where} does not speak TLS; it is a broker's port for plain MQTT",
        remedy="Use the broker's TLS port, usually 8883. "
        f"Only on this machine or a network you trust, write {'ws' if scheme == 'wss' else 'mqtt'}://{rest}.",
    )


def only_mqtt_3(where: str) -> ConnectionFailure:
    """Return the error for a broker without MQTT 5."""
    return ConnectionFailure(
        f"{where} speaks MQTT 3.1.1 only; Hedgerow needs MQTT 5",
        remedy="Update the broker, or use one that speaks MQTT 5, such as Mosquitto 2. Sensors may keep MQTT 3.1.1.",
    )


def not_mqtt(where: str, reply: bytes) -> ConnectionFailure:
    """Return the error for a peer that speaks another protocol."""
    return ConnectionFailure(
        f"{where} is not an MQTT 5 broker: it answers {reply[:20]!r}",
        remedy="Check the host and the port of the MQTT 5 broker.",
    )


def malformed(where: str, error: Exception) -> ConnectionFailure:
    """Return the error for a packet that is not MQTT 5."""
    return ConnectionFailure(
        f"{where} sent what is not MQTT 5: {error}",
        remedy="Check that it is an MQTT 5 broker, and what is between it and this machine.",
        unclear=True,
    )


def refused(where: str, reason: int, text: str, username: str | None = None, client_id: str = "") -> ConnectionFailure:
    """Return the error for the reason code of a CONNACK.

    Args:
        username, client_id: that were sent.
    """
    remedy = _CONNECT_REMEDIES.get(reason, "Check the broker's log.")
    client_id = without_token(client_id)
    client = f"the client id {client_id!r}" if client_id else "this client"
    if reason in (0x86, 0x87) and username is None:
        remedy = (
            "No user name was sent: set `username` and `password_file`, or `tls: {cert_file, key_file}` if the broker identifies "
            f"clients by certificate; else allow {client} in the broker's configuration."
        )
    elif reason == 0x87:
        remedy = (
            f"Check the password of {username!r}: Mosquitto answers this to a wrong one too. If it is right, allow {client} in "
            "the broker's configuration."
        )
    elif reason == 0x85:
        remedy = (
            f"Allow client ids such as {client_id!r} in the broker's configuration (Mosquitto: `clientid_prefixes`)."
        )
    return _ended(f"{where} refused the connection", reason, text, remedy)


def disconnected(where: str, reason: int, text: str) -> ConnectionFailure:
    """Return the error for the reason code of a DISCONNECT."""
    remedy = _CONNECT_REMEDIES.get(reason, "Check the broker's log.")
    error = _ended(f"{where} closed the connection", reason, text, remedy)
    error.over_a_message = reason not in _NOT_OVER_A_MESSAGE
    return error


def ended_by_peer(error: Exception | None) -> bool:
    """Whether a link that ended with this error was closed by the broker, maybe over a message that it received."""
    if isinstance(error, ConnectionFailure):
        return error.over_a_message
    return isinstance(error, ConnectionError) and not isinstance(error, ConnectionAbortedError)


def _ended(message: str, reason: int, text: str, remedy: str) -> ConnectionFailure:
    more = f" ({text})" if text else ""
    return ConnectionFailure(f"{message}: {reason_name(reason)}{more}", remedy=remedy, transient=reason in _TRANSIENT)


def no_qos(where: str) -> ConnectionFailure:
    """Return the error for a broker that accepts QoS 0 only."""
    return ConnectionFailure(
        f"{where} accepts QoS 0 only (Maximum QoS 0), so results, status and dead letters could be lost",
        remedy="Allow QoS 1 in the broker's configuration (Mosquitto: remove `max_qos 0` from the listener), or use "
        "another listener.",
    )


def qos_lowered(granted: Mapping[str, int]) -> BusError:
    """Return the error for subscriptions that were granted with a lower QoS.

    Args:
        granted: QoS by topic filter.
    """
    what = ", ".join(f"{name} (QoS {qos})" for name, qos in granted.items())
    return BusError(
        f"The broker granted a lower QoS than requested, so messages can be lost: {what}",
        remedy="Raise the QoS that the broker grants this client: see its ACL and its maximum QoS.",
    )


def session_lost(where: str, away_s: float | None, kept_s: int) -> BusError:
    """Return the error for a broker without the session that it should have kept.

    Args:
        away_s: how long the link was down, in seconds; None: since an earlier run.
        kept_s: how long the broker keeps a session, in seconds.
    """
    since = "this node last ran" if away_s is None else f"the link was lost {away_s:.1f} s ago"
    if away_s is not None and away_s > kept_s:
        cause, remedy = f"the broker kept it for {kept_s} s only", "Raise `broker: {session_expiry_s}`."
    else:
        cause = f"{where} restarted without its sessions, or this node was away for longer than {kept_s} s"
        remedy = (
            "Let the broker write its sessions to disk (Mosquitto: `persistence true`, a short `autosave_interval`), "
            "and see its log for when it started."
        )
    return BusError(
        f"The broker forgot the session, and with it the QoS 1 messages that have waited there since {since}: {cause}",
        remedy=remedy,
    )


def bad_topic(topic: str, why: str) -> BusError:
    """Return the error for an invalid topic name."""
    return BusError(f"Cannot publish to {topic[:80]!r}: {why}", remedy="Use a topic name, not a filter.")


def subscription_refused(refused: Mapping[str, int]) -> BusError:
    """Return the error for a refused subscription.

    Args:
        refused: reason codes by topic filter.
    """
    what = ", ".join(f"{name} ({reason_name(reason)})" for name, reason in refused.items())
    return BusError(
        f"The broker refused the subscription to {what}",
        remedy="Allow this client to read these topics in the broker's ACL.",
    )


def publish_refused(reason: int, text: str) -> BusError:
    """Return the error for a PUBACK with a failure reason."""
    more = f" ({text})" if text else ""
    remedy = "Check the broker's log."
    if reason == 0x87:
        remedy = "Allow this client to write this topic in the broker's ACL."
    elif reason == 0x97:
        remedy = "Raise the broker's quota, or publish less."
    return BusError(f"The broker refused the message: {reason_name(reason)}{more}", remedy=remedy)


def packet_too_large(size: int, limit: int) -> BusError:
    """Return the error for a packet above the broker's Maximum Packet Size."""
    return BusError(
        f"A message of {size} bytes exceeds the broker's limit of {limit}",
        remedy="Publish smaller messages, or raise `max_packet_size` in the broker's configuration.",
    )

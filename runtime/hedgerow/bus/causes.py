"""Translates connection failures and MQTT reason codes into errors with remedies."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from hedgerow.bus.packets import reason_name
from hedgerow.errors import BusError

_CONNECT_REMEDIES: Final = {
    0x84: "Use a broker that speaks MQTT 5, such as Mosquitto 2.",
    0x85: "Use another `client_id`: 1 to 23 letters and digits are always allowed.",
    0x86: "Check `username` and `password`.",
    0x87: "Allow this client in the broker's configuration (`allow_anonymous`, `password_file`, ACL).",
    0x89: "Wait; the broker is busy. The client keeps retrying.",
    0x8A: "Ask the broker's administrator why this client is banned.",
    0x8E: "Another node has the same name: give each its own (`node: {region, site, name}`).",
    0x8D: "The broker received nothing within the keep-alive time: check the network and this machine's load.",
    0x95: "Publish smaller messages, or raise `max_packet_size` in the broker's configuration.",
    0x97: "Raise the broker's quota, or connect fewer clients.",
    0x9F: "Wait; the broker limits the connection rate. The client keeps retrying.",
}

_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": (
        "none was sent",
        "Set `cert_file` and `key_file`: this broker requires a client certificate.",
    ),
    "CERTIFICATE_EXPIRED": (
        "it has expired",
        "Renew it (`hedgerow pki renew`), and check the clocks of both machines.",
    ),
    "CERTIFICATE_REVOKED": ("it is revoked", "If that is a mistake, issue a new one: `hedgerow pki issue`."),
    "UNKNOWN_CA": (
        "its authority is unknown to the broker, or has no revocation list there",
        "Use a certificate from an authority listed in the broker's `cafile` and `crlfile`.",
    ),
}
"""TLS alerts (RFC 8446 §6.2) by which a broker refuses a client certificate: the reason, and the remedy."""


_BY_CLOCK: Final = {
    9: "the broker's certificate is not valid yet, so the clock is probably wrong",
    10: "the broker's certificate has expired",
    11: "a revocation list is not valid yet, so the clock is probably wrong",
    12: "a revocation list has expired",
}
"""OpenSSL's verification errors about time, from X509_V_ERR_CERT_NOT_YET_VALID on."""


def unreachable(where: str, error: BaseException) -> BusError:
    """Return the error for a failed or lost connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _BY_CLOCK:
            return BusError(
                f"By this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC), {_BY_CLOCK[error.verify_code]}: {where}",
                remedy="Check the clock first (`timedatectl`); if it is right, renew the certificates and revocation lists. "
                "The client keeps retrying.",
            )
        return BusError(
            f"The certificate of {where} is not trusted: {error.verify_message}",
            remedy="Set `ca_file` to the authority that signed it, and connect by a name that is in the certificate.",
        )
    if isinstance(error, ssl.SSLError):
        for alert, (what, remedy) in _ALERTS.items():
            if alert in (error.reason or ""):
                return BusError(f"{where} refused our client certificate: {what}", remedy=remedy)
        return BusError(
            f"TLS with {where} failed: {error.reason or error}",
            remedy="Check that the port speaks TLS; if the broker requires a client certificate, check `cert_file` and `key_file`.",
        )
    if isinstance(error, socket.gaierror):
        return BusError(f"{where}: unknown host name ({error.strerror})", remedy="Check the host name and DNS.")
    if isinstance(error, ConnectionRefusedError):
        return BusError(f"{where} refused the connection", remedy="Start the broker there, or check the port.")
    if isinstance(error, FileNotFoundError):
        return BusError(f"{where}: no such socket", remedy="Start the broker, or check the path.")
    if isinstance(error, PermissionError):
        return BusError(f"{where}: permission denied", remedy="Give this user read and write access to the socket.")
    if isinstance(error, TimeoutError):
        return BusError(
            f"{where} did not answer in time", remedy="Check the address, the network, and that it is an MQTT 5 broker."
        )
    if isinstance(error, ConnectionError):
        # A broker that requires a certificate may close the connection before its alert is read (RFC 8446 §4.4.2.4).
        certificate = (
            ", that `cert_file` and `key_file` are set if it requires a client certificate" if "mqtts:" in where else ""
        )
        return BusError(
            f"{where} closed the connection",
            remedy=f"Check that the broker is up, its log{certificate}, and that no other node has the same name.",
        )
    return BusError(f"Cannot reach {where}: {error}", remedy="Check the address and the network.")


def refused(where: str, reason: int, text: str) -> BusError:
    """Return the error for the reason code of a CONNACK."""
    return _ended(f"{where} refused the connection", reason, text)


def disconnected(where: str, reason: int, text: str) -> BusError:
    """Return the error for the reason code of a DISCONNECT."""
    return _ended(f"{where} closed the connection", reason, text)


def _ended(message: str, reason: int, text: str) -> BusError:
    more = f" ({text})" if text else ""
    return BusError(
        f"{message}: {reason_name(reason)}{more}",
        remedy=_CONNECT_REMEDIES.get(reason, "Check the broker's log."),
    )


def no_qos(where: str) -> BusError:
    """Return the error for a broker that accepts QoS 0 only."""
    return BusError(
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

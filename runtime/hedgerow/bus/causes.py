"""What went wrong between us and the broker, in our words, and what to do about it."""

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
    0x87: "Give this client access in the broker's configuration (`allow_anonymous`, `password_file`, ACL).",
    0x89: "Wait; the broker is busy. Trying goes on.",
    0x8A: "Ask whoever runs the broker why this client is banned.",
    0x8E: "Another node has the same name: give each its own (`node: {region, site, name}`).",
    0x8D: "The broker heard nothing for too long: look at the network and at this machine's load.",
    0x95: "Publish less at once, or raise `max_packet_size` in the broker's configuration.",
    0x97: "Raise the broker's quota, or connect fewer clients.",
    0x9F: "Wait; the broker limits how often clients connect. Trying goes on.",
}

_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": ("there is none", "Set `cert_file` and `key_file`: this broker asks for certificates."),
    "CERTIFICATE_EXPIRED": ("it has ended", "Bring a new one (`hedgerow pki renew`), and look at the clocks of both."),
    "CERTIFICATE_REVOKED": ("it is revoked", "If that is a mistake, have a new one issued: `hedgerow pki issue`."),
    "UNKNOWN_CA": (
        "it does not know who signed it, or has no revocation list of them",
        "Take a certificate of an authority that the broker's `cafile` and `crlfile` name.",
    ),
}
"""What a broker's TLS alert (RFC 8446 §6.2) means for us, and what to do."""


_BY_CLOCK: Final = {
    9: "the broker's certificate is not valid yet, so that clock is likely wrong",
    10: "the broker's certificate has ended",
    11: "a revocation list is not valid yet, so that clock is likely wrong",
    12: "a revocation list has ended",
}
"""What OpenSSL (X509_V_ERR_CERT_NOT_YET_VALID and those after it) says when times do not fit."""


def unreachable(where: str, error: BaseException) -> BusError:
    """What a failure to connect means, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _BY_CLOCK:
            return BusError(
                f"By this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC), {_BY_CLOCK[error.verify_code]}: {where}",
                remedy="Set the clock first (`timedatectl` shows it); if it is right, bring new certificates and lists. "
                "Trying goes on.",
            )
        return BusError(
            f"The certificate of {where} is not trusted: {error.verify_message}",
            remedy="Set `ca_file` to the authority that signed it, and connect by a name the certificate carries.",
        )
    if isinstance(error, ssl.SSLError):
        for alert, (what, remedy) in _ALERTS.items():
            if alert in (error.reason or ""):
                return BusError(f"{where} refuses our certificate: {what}", remedy=remedy)
        return BusError(
            f"TLS with {where} failed: {error.reason or error}",
            remedy="Check that the port speaks TLS, and `cert_file` and `key_file` if the broker asks for certificates.",
        )
    if isinstance(error, socket.gaierror):
        return BusError(f"{where}: the name is unknown ({error.strerror})", remedy="Check the host's name and the DNS.")
    if isinstance(error, ConnectionRefusedError):
        return BusError(f"{where} refuses connections", remedy="Start the broker there, or check the port.")
    if isinstance(error, FileNotFoundError):
        return BusError(f"{where}: there is no such socket", remedy="Start the broker, or check the path.")
    if isinstance(error, PermissionError):
        return BusError(f"{where}: not permitted", remedy="Give this user the right to use the socket.")
    if isinstance(error, TimeoutError):
        return BusError(
            f"{where} does not answer", remedy="Check the address, the network and that it is an MQTT 5 broker."
        )
    if isinstance(error, ConnectionError):
        # A broker that asks for a certificate and gets none may hang up before its alert is read (RFC 8446 §4.4.2.4).
        certificate = (
            ", that `cert_file` and `key_file` are set if it asks for certificates" if "mqtts:" in where else ""
        )
        return BusError(
            f"{where} closed the connection",
            remedy=f"Look whether the broker is up, at its log{certificate}, and whether another node has the same name.",
        )
    return BusError(f"{where} cannot be reached: {error}", remedy="Check the address and the network.")


def refused(where: str, reason: int, text: str) -> BusError:
    """What a reason code of CONNACK or DISCONNECT means, and what to do."""
    more = f" ({text})" if text else ""
    return BusError(
        f"{where} says: {reason_name(reason)}{more}",
        remedy=_CONNECT_REMEDIES.get(reason, "Look at the broker's log."),
    )


def bad_topic(topic: str, why: str) -> BusError:
    """The error of a topic that nobody can publish to."""
    return BusError(f"Cannot publish to {topic[:80]!r}: {why}", remedy="Publish to a topic name, not to a filter.")


def subscription_refused(refused: Mapping[str, int]) -> BusError:
    """What a SUBACK that refuses means: reason code by topic filter."""
    what = ", ".join(f"{name} ({reason_name(reason)})" for name, reason in refused.items())
    return BusError(
        f"The broker refuses the subscription to {what}",
        remedy="Give this client the right to read these topics in the broker's ACL.",
    )


def publish_refused(reason: int, text: str) -> BusError:
    """What a PUBACK that refuses means, and what to do."""
    more = f" ({text})" if text else ""
    remedy = "Look at the broker's log."
    if reason == 0x87:
        remedy = "Give this client the right to write this topic in the broker's ACL."
    elif reason == 0x97:
        remedy = "Raise the broker's quota, or publish less."
    return BusError(f"The broker refuses the message: {reason_name(reason)}{more}", remedy=remedy)


def packet_too_large(size: int, limit: int) -> BusError:
    """The error of a packet that the broker would not take."""
    return BusError(
        f"A message of {size} bytes is larger than the broker takes ({limit})",
        remedy="Publish less at once, or raise `max_packet_size` in the broker's configuration.",
    )

"""Tries whether a client without rights can end a session whose client id it knows; with throwaway ids, never a node's."""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal, NamedTuple

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.cli.base.connection import connected
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError
from hedgerow.node.link.options import on_loopback

_SESSION_S: Final = 60
_TIMEOUT_S: Final = 5
_SECRET: Final = (
    "The ids of nodes and services are random, so nobody can know one; keep the broker's log to its operators"  # noqa: S105 - prose
)
_REMEDY: Final = "Require credentials on every listener (Mosquitto: `allow_anonymous false`), or bind client ids to users: docs/operator/security.md."


class Takeover(NamedTuple):
    """What was found.

    Attributes:
        state: "warning" if clients without credentials can end sessions of others.
        remedy: what to do about it; "" if nothing.
    """

    state: Literal["ok", "warning"]
    detail: str
    remedy: str = ""


async def try_takeover(broker: BrokerSection) -> Takeover:
    """Leave a session, try to end it as a client without credentials, and look whether it is still there.

    Args:
        broker: with the credentials of a node or a tool.
    Raises: HedgerowError: the broker cannot be reached.
    """
    name = f"hedgerow-doctor/{secrets.token_hex(16)}"
    anonymous = broker.model_copy(
        update={
            "username": None,
            "password": None,
            "password_file": None,
            "tls": broker.tls.model_copy(update={"cert_file": None, "key_file": None}),
        }
    )
    try:
        async with connected(broker, **_session(name, _SESSION_S)):
            pass
    except BusError as error:
        return Takeover("ok", f"the broker refuses ids that are not this user's: {error}")
    try:
        try:
            async with connected(anonymous, **_session(name, 0) | {"clean_start": True}):
                pass
        except BusError:
            detail = "no client gets in without credentials, but one with any may use every id"
            return Takeover("ok", f"{detail}. {_SECRET}.")
    finally:
        async with connected(broker, **_session(name, 0)) as client:  # ends the session
            kept = client.session_present
    if kept:
        return Takeover("ok", "another client with the same id does not end a session")
    detail = f"a client without credentials that knows an id ends its session, with all that waits there. {_SECRET}."
    if on_loopback(broker.url):
        return Takeover("ok", detail)
    return Takeover("warning", detail, _REMEDY)


def _session(name: str, kept_s: int) -> dict[str, Any]:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = kept_s
    return {"identifier": name, "clean_start": False, "properties": properties, "timeout": _TIMEOUT_S}

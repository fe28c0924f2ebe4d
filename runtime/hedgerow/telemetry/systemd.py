"""Tells systemd that a service has started, lives, reloads and stops: the protocol of sd_notify(3).

A message is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent, so the same
calls are made under systemd, in Podman with `Notify=true`, in other containers and in a terminal.
"""

from __future__ import annotations

import os
import socket
import time

import structlog

log = structlog.get_logger(__name__)


def ready() -> None:
    """The service has started, or ended a reload."""
    _send("READY=1")


def reloading() -> None:
    """The service reads its configuration again; `ready` must follow, however that ends."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """The service drains and will end."""
    _send("STOPPING=1")


def alive() -> None:
    """The event loop turns: sent every second by it, which serves a `WatchdogSec=` of 2 s and more."""
    if "WATCHDOG_USEC" in os.environ and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        _send("WATCHDOG=1")


def _send(*assignments: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)  # a supervisor that does not read must not hold up frames
            notify.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.warning("systemd-not-told", message=assignments[0], socket=path, error=str(error))

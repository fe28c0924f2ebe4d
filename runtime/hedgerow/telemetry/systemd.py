"""Notifies systemd that a service is ready, alive, reloading or stopping: sd_notify(3).

A message is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent, so the calls
are the same under systemd, in Podman with `Notify=true`, in other containers and in a terminal.
"""

from __future__ import annotations

import os
import socket
import time

import structlog

log = structlog.get_logger(__name__)

_EXTENSION_S = 60


def ready() -> None:
    """Notify that the service has started, or finished a reload."""
    _send("READY=1")


def starting() -> None:
    """Notify that the service is still starting, every few seconds: `TimeoutStartSec=` then does not end it."""
    _send(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1_000_000}")


def reloading() -> None:
    """Notify that the service reloads its configuration; call `ready` afterwards, even if the reload fails."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """Notify that the service drains and will exit."""
    _send("STOPPING=1")


def alive() -> None:
    """Feed the watchdog. The event loop calls this every second, so `WatchdogSec=` may be 2 s or more."""
    if "WATCHDOG_USEC" in os.environ and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        _send("WATCHDOG=1")


def _send(*assignments: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)  # a supervisor that does not read must not block the event loop
            notify.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.warning("systemd-not-told", message=assignments[0], socket=path, error=str(error))

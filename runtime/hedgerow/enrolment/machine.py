"""Describes this machine when it enrols, so that a person recognises it; that proves nothing."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path
from typing import Final

import hedgerow
from hedgerow.text import visible

_LONGEST: Final = 120
_FILES: Final = {
    "serial": ("/sys/class/dmi/id/product_serial", "/proc/device-tree/serial-number"),
    "model": ("/sys/class/dmi/id/product_name", "/proc/device-tree/model"),
    "maker": ("/sys/class/dmi/id/sys_vendor",),
}


def describe_machine() -> dict[str, str]:
    """Return what to tell about this machine; what cannot be read is left out."""
    found = {
        "hostname": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "cores": str(os.cpu_count() or ""),
        "hedgerow": hedgerow.__version__,
    }
    for name, paths in _FILES.items():
        for path in paths:
            try:
                text = Path(path).read_text("utf-8", errors="replace").strip().rstrip("\0")
            except OSError:  # absent, or for root only
                continue
            if text:
                found[name] = text
                break
    return {name: visible(text)[:_LONGEST] for name, text in found.items() if text}

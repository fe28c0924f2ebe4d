"""Child processes that come to an end, whatever they do."""

from __future__ import annotations

import signal
import subprocess
from typing import Any


def end(process: subprocess.Popen[Any], patience_s: float = 20.0, how: signal.Signals = signal.SIGTERM) -> None:
    """Ask a process to end; kill it if it takes long. One that has ended already is no error.

    Args:
        patience_s: how long it may take.
        how: by which signal it is asked.
    """
    process.send_signal(how)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

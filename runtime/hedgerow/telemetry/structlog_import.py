"""structlog without rich, for a process whose log nobody reads on a terminal.

structlog imports rich and pygments for its coloured tracebacks, a sixth of all that a node imports, whether they are asked
for or not. A service calls this before its own imports bring structlog in.
"""

from __future__ import annotations

import sys
from typing import Literal


def readable(format: Literal["auto", "console", "json"]) -> bool:
    """Whether the log is for people: lines with colours, not JSON."""
    return format == "console" or (format == "auto" and sys.stderr.isatty())


def import_structlog(format: Literal["auto", "console", "json"]) -> None:
    """Import structlog if the log will be JSON, and hide rich from it, and from nothing else."""
    if readable(format) or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # how Python is told that there is none
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]

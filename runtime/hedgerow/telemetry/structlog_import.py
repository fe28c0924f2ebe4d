"""Imports structlog without rich, for a process whose log is JSON.

structlog imports rich and pygments for colored tracebacks even if they are not used: a sixth of a node's imports. A
service calls `import_structlog` before its other imports load structlog.
"""

from __future__ import annotations

import sys
from typing import Literal


def human_readable(format: Literal["auto", "console", "json"]) -> bool:
    """Return whether the log consists of lines for humans, not JSON."""
    return format == "console" or (format == "auto" and sys.stderr.isatty())


def import_structlog(format: Literal["auto", "console", "json"]) -> None:
    """If the log will be JSON, import structlog with rich hidden from it; later imports find rich as usual."""
    if human_readable(format) or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # makes `import rich` raise ImportError
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]

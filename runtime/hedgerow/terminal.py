"""Whether a stream takes escape sequences: color, bold, moves of the cursor."""

from __future__ import annotations

import os
from typing import TextIO


def plain_output() -> bool:
    """Whether the environment forbids escape sequences: NO_COLOR is set (no-color.org), or the terminal knows none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def takes_escapes(stream: TextIO) -> bool:
    """Whether escape sequences may be written to a stream: it is a terminal, and the environment allows them."""
    return stream.isatty() and not plain_output()

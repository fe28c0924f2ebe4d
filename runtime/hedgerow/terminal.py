"""Detects whether a stream supports escape sequences: colors, bold, cursor movement."""

from __future__ import annotations

import os
from typing import TextIO


def plain_output() -> bool:
    """Whether the environment rules out escape sequences: NO_COLOR (no-color.org), or a terminal without support."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def takes_escapes(stream: TextIO) -> bool:
    """Whether a stream is a terminal and the environment allows escape sequences."""
    return stream.isatty() and not plain_output()

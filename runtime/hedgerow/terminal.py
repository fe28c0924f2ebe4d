"""Detects whether a stream supports color, and whether it supports output that redraws itself."""

from __future__ import annotations

import os
from typing import TextIO


def color_allowed() -> bool:
    """Return whether the environment allows color: NO_COLOR is unset or empty (no-color.org), and TERM is not dumb."""
    return not os.environ.get("NO_COLOR") and not _dumb()


def supports_color(stream: TextIO) -> bool:
    """Return whether to write color to a stream: it is a terminal, and the environment allows color."""
    return stream.isatty() and color_allowed()


def supports_redraw(stream: TextIO) -> bool:
    """Return whether a live table or progress bar can redraw itself on a stream: a terminal that moves its cursor.

    NO_COLOR makes no difference: rich obeys it and draws without color.
    """
    return stream.isatty() and not _dumb()


def _dumb() -> bool:
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")

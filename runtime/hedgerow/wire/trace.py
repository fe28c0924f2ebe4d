"""Trace contexts of frames, as in W3C Trace Context."""

from __future__ import annotations

import os
import re
from typing import Final

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{1,200})?", re.ASCII
)


def trace_context(traceparent: str) -> str | None:
    """Return a sender's `traceparent` in version 00 of the format, which is 55 characters; None if it is invalid.

    Of a later version, the part that version 00 has is used (W3C Trace Context §4.3).
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[5]):
        return None
    return f"00-{found[2]}-{found[3]}-{found[4]}"


def trace_child(traceparent: str) -> str:
    """Return the trace context of a child span (§3.2): same trace, new parent.

    One that a stage has set to something else is returned unchanged.
    """
    if len(traceparent) != 55:
        return traceparent
    return f"{traceparent[:36]}{os.urandom(8).hex()}{traceparent[52:]}"

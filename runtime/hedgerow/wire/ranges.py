"""Ranges of the numbers that other machines send; what lies beyond is refused where it is read.

They are far beyond what an honest machine sends, and far below what a database, a JSON reader or a sum of many can hold.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

MAX_COUNT: Final = (1 << 53) - 1
"""Highest count: the highest integer that every reader of JSON keeps exactly."""
MAX_GENERATION: Final = (1 << 31) - 1
"""Highest generation of a desired document: one a second for 68 years."""
MAX_LEAD: Final = 1_000_000
"""How far a node's generation may be ahead of its region's before the region stops following it."""
LATEST_TIME: Final = 253_402_300_799.0
"""Latest time, in Unix seconds: the end of the year 9999."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""A number of things, or of bytes."""
Generation = Annotated[int, Field(ge=0, le=MAX_GENERATION)]
"""A generation; 0: none yet."""
UnixTime = Annotated[float, Field(ge=0, le=LATEST_TIME, allow_inf_nan=False)]
"""A time in Unix seconds."""
Seconds = Annotated[float, Field(ge=0, le=LATEST_TIME, allow_inf_nan=False)]
"""A duration."""
Quantity = Annotated[float, Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
"""Any other number: a rate, a latency, a distance."""

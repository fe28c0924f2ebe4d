"""Runs a service on the configured event loop."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Coroutine
from typing import Any, Literal

from hedgerow.errors import ConfigError

LoopKind = Literal["asyncio", "uvloop"]


def run_on(kind: LoopKind, main: Coroutine[Any, Any, None]) -> None:
    """Run a service until it ends.

    Raises: ConfigError: uvloop is configured, and not installed.
    """
    if kind == "asyncio":
        asyncio.run(main)
        return
    if importlib.util.find_spec("uvloop") is None:
        main.close()
        raise ConfigError(
            "`node.event_loop` is uvloop, which is not installed",
            remedy="Run `pip install hedgerow[uvloop]`, or set `event_loop: asyncio`.",
        )
    import uvloop

    uvloop.run(main)

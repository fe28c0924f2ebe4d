"""`hedgerow node run`: the runtime itself."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Annotated

import typer


def run(
    config: Annotated[Path, typer.Argument(help="The node's configuration (YAML). `configs/` has examples.")],
) -> None:
    """Run a node until Ctrl-C or SIGTERM; then finish what is in flight and stop. SIGHUP reloads the file.

    Examples:
        hedgerow node run configs/shop.yaml

        HEDGEROW_BROKER__URL=mqtts://broker:8883 hedgerow node run node.yaml
    """
    from hedgerow import configfile
    from hedgerow.cli.base.event_loop import run_on
    from hedgerow.telemetry.structlog_import import import_structlog

    settings = configfile.load(config)
    import_structlog(settings.log.format)
    from hedgerow.node.node import Node
    from hedgerow.telemetry import logs

    logs.configure(settings.log.level, settings.log.format)

    async def main() -> None:
        node = Node(settings, config)
        node.handle_signals()
        await node.run(_settle_memory)

    run_on(settings.node.event_loop, main())


def _settle_memory() -> None:
    """Give back what loading took, and look for cyclic garbage less often: frames make none.

    What is there now is there to stay, and not looked at again: that takes some 50 ms, in which no thread can go on.
    """
    gc.set_threshold(20_000, 10, 10)
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; musl has none
    if trim is not None:
        trim(0)

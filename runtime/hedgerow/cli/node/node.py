"""`hedgerow node run`: runs a node."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def run(
    config: Annotated[Path, typer.Argument(help="The node's configuration (YAML). `configs/` has examples.")],
) -> None:
    """Run a node until Ctrl-C or SIGTERM, then finish the frames in flight and stop. SIGHUP reloads the file.

    A node that enrolled also renews its certificate, and starts again under another name if the region gives it one.

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
    os.umask(0o077)  # whatever the node and its workers write is for its user alone
    if sys.stderr is not None:
        faulthandler.enable()  # a crash of native code leaves its stack in the log

    async def main() -> None:
        if (config.parent / "enrolment.json").exists():
            from hedgerow.enrolment.renewal import run_node  # imports what only nodes need that enrolled

            await run_node(settings, config, _settle_garbage_collection)
            return
        node = Node(settings, config)
        node.handle_signals()
        await node.run(_settle_garbage_collection)

    try:
        run_on(settings.node.event_loop, main())
    finally:
        logs.report_repeats(final=True)


def _settle_garbage_collection() -> None:
    """Release memory that loading used, and collect cyclic garbage less often, as frames create none.

    Objects alive now stay alive, and are never scanned again: a scan takes some 50 ms, in which no thread runs.
    """
    gc.set_threshold(20_000, 10, 10)
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc, not in musl
    if trim is not None:
        trim(0)

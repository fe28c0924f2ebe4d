"""Runs an enrolled node: keeps its certificate valid, and starts it again under another name when the region gives it one.

It asks as `hedgerow enrol` does, and the region decides whether anything is due. That needs the node's key and no valid certificate: so
a node that was off for months comes back by itself, within `grace_days` of the region.

Rules:
- The running node watches its files and uses new ones. Only for another name it ends first.
- Nothing that goes wrong here stops the node. It is logged, once for each reason, and tried again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from hedgerow import configfile, tasks
from hedgerow.config import NodeConfig
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.grant import NodeGrant
from hedgerow.errors import HedgerowError
from hedgerow.node.node import Node
from hedgerow.pki.inspect import Life

log = structlog.get_logger(__name__)

EVERY_S: Final = 300.0
"""How often a node asks: another name reaches it within that time."""
_URGENT_S: Final = 20.0
"""How often while its certificate is not valid."""


async def run_node(settings: NodeConfig, path: Path, started: Callable[[], None], *, every_s: float = EVERY_S) -> None:
    """Run an enrolled node until it is stopped.

    Args:
        settings: its configuration.
        path: its file, in the folder of its enrolment.
        started: see `Node.run`.
        every_s: pause between two questions.
    Raises: ConfigError: see `Node.run`.
    """
    while True:
        node = Node(settings, path)
        node.handle_signals()
        renewal = NodeRenewal(EnrolmentFolder(path.parent), node, every_s=every_s)
        asking = tasks.start(renewal.run(), "renewal")
        try:
            await node.run(started)
            if not renewal.leaves:
                return
            renewal.node_has_ended()
            await asking
        finally:
            await tasks.cancel(asking)
        if "NOTIFY_SOCKET" in os.environ:
            return  # systemd was told that it stops, and starts it again
        settings = configfile.load(path)


class NodeRenewal:
    """Asks for what is due while a node runs.

    Args:
        folder: the node's.
        node: the node.
        every_s: pause between two questions.
    Attributes:
        leaves: whether the node was stopped because it has another name.
    """

    def __init__(self, folder: EnrolmentFolder, node: Node, *, every_s: float = EVERY_S) -> None:
        self._folder = folder
        self._node = node
        self._every_s = every_s
        self._reported = ""
        self._ended = asyncio.Event()
        self.leaves = False

    async def run(self) -> None:
        """Ask until the node has another name, and its files are those of that."""
        while True:
            try:
                grant = await enrol(self._folder, None, once=True, leave=self._leave)
            except HedgerowError as error:
                self._report(error)
            except Exception:  # a bug: without this, the certificate would end one day
                log.exception("renewal-failed")
            else:
                self._reported = ""
                if grant.node != str(self._node.address) and await self._leave(grant):
                    return
            if self._ended.is_set():  # the files could not be replaced: the node goes on as it was, after a pause
                await asyncio.sleep(_URGENT_S)
                return
            await asyncio.sleep(self._pause_s() * random.uniform(0.75, 1.25))

    def node_has_ended(self) -> None:
        """Tell that the node has ended, so that its files may be replaced."""
        self._ended.set()

    async def _leave(self, grant: NodeGrant) -> bool:
        """Stop the node. Returns: whether its files may be replaced; not if it stops already, since it may not be started again."""
        if not self.leaves:
            if self._node.stopping:
                return False
            log.info("node-renamed", node=grant.node, was=str(self._node.address))
            self.leaves = True
            self._node.stop()
        await self._ended.wait()
        return True

    def _pause_s(self) -> float:
        try:
            ended = Life.of(self._folder.tls / "tls.crt").state(datetime.now(UTC)) == "ended"
        except HedgerowError:
            ended = True
        return min(self._every_s, _URGENT_S) if ended else self._every_s

    def _report(self, error: HedgerowError) -> None:
        text = f"{error.code}: {error}"
        if text != self._reported:
            log.warning("renewal-failed", code=error.code, error=str(error), remedy=error.remedy)
        self._reported = text

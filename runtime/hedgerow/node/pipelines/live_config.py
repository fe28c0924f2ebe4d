"""The node's live configuration: its file plus the region's overlay."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from hedgerow import configfile
from hedgerow.config import NodeConfig
from hedgerow.errors import CommandError, HedgerowError
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.pipelines.overlay import Overlay, overlaid
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.telemetry import systemd

log = structlog.get_logger(__name__)

_FIXED = ("node", "broker", "outbox", "fleet", "replies", "metrics", "log")
"""Sections that a reload cannot change."""


class LiveConfig:
    """Changes the configuration while the node runs, by reloading the file or by setting an overlay.

    Args:
        file: the file's content.
        path: the file; None: the node was started without one.
        pipelines: the node's pipelines.
        announcer: publishes changes and refusals.
        renew_links: reconnects with a password file's new password; raises if the broker refuses that.
    Attributes:
        file: the file's content, without the overlay.
        overlay: the region's changes to pipelines.
    """

    def __init__(
        self,
        file: NodeConfig,
        path: Path | None,
        pipelines: Pipelines,
        announcer: Announcer,
        renew_links: Callable[[], Awaitable[None]],
    ) -> None:
        self.file = file
        self.overlay: Overlay = {}
        self._path = path
        self._pipelines = pipelines
        self._announcer = announcer
        self._changing = asyncio.Lock()
        self._renew_links = renew_links
        _warn_about_renamed_keys(file)

    def effective(self) -> NodeConfig:
        """Return the file with the overlay applied. Raises: OverlayError: the overlay does not fit the file."""
        return overlaid(self.file, self.overlay)

    def restore_overlay(self, overlay: Overlay) -> None:
        """Restore an earlier run's overlay, before the pipelines start; discard it if it no longer fits the file."""
        try:
            overlaid(self.file, overlay)
        except HedgerowError as error:  # the file has changed since
            log.warning("overlay-refused", error=str(error), remedy=error.remedy)
            self._announcer.event("overlay-refused", {"error": str(error)})
        else:
            self.overlay = overlay

    async def set_overlay(self, overlay: Overlay) -> None:
        """Apply another overlay. Raises: HedgerowError: it is invalid; nothing has changed."""
        async with self._changing:
            await self._pipelines.reload(overlaid(self.file, overlay), lambda: setattr(self, "overlay", overlay))

    async def reload(self, text: str | None = None) -> dict[str, list[str]]:
        """Apply a new configuration; if any part of it is invalid, nothing changes.

        Args:
            text: the configuration; None rereads the node's file.
        Returns: names of pipelines `added`, `changed`, `removed` and `kept`.
        Raises: HedgerowError: it is invalid.
        """
        file = await asyncio.to_thread(self._read, text)
        for section in _FIXED:
            if getattr(file, section).model_dump() != getattr(self.file, section).model_dump():
                raise CommandError(
                    f"A reload cannot change `{section}:`",
                    code="restart-needed",
                    remedy="Restart the node. A reload can change pipelines and models.",
                )
        async with self._changing:
            await self._renew_links()
            effective = overlaid(file, self.overlay)
            outcome = await self._pipelines.reload(effective, lambda: setattr(self, "file", file))
        _warn_about_renamed_keys(file)
        log.info("reloaded", **outcome)
        self._announcer.event("reloaded", dict(outcome))
        return outcome

    async def reload_on_signal(self) -> None:
        """Reload the file. Never raises: errors are logged and published."""
        systemd.reloading()
        try:
            await self.reload()
        except HedgerowError as error:
            log.error("reload-refused", code=error.code, error=str(error), remedy=error.remedy)
            self._announcer.event("reload-refused", {"code": error.code, "error": str(error)})
        finally:
            systemd.ready()

    def _read(self, text: str | None) -> NodeConfig:
        if text is not None:
            return configfile.parse(text, self._path or Path("command"))
        if self._path is None:
            raise CommandError(
                "The node was not started from a file",
                code="no-config-file",
                remedy="Send the configuration in the argument `config`.",
            )
        return configfile.load(self._path)


def _warn_about_renamed_keys(file: NodeConfig) -> None:
    for former, current in file.renamed_keys.items():
        log.warning("config-key-renamed", key=former, remedy=f"Rename it to `{current}`.")

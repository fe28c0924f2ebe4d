"""The configuration that a node runs by: its file, with what the region changes about pipelines laid over it."""

from __future__ import annotations

import asyncio
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

_FIXED = ("node", "broker", "outbox", "fleet", "metrics", "log")
"""Sections that only a restart changes."""


class LiveConfig:
    """Changes the configuration while the node runs: by a reload of the file, or by another overlay.

    Args:
        file: the configuration as the file has it.
        path: the file; None: the node was not started from one.
        pipelines: run by the configuration.
        announcer: publishes what changed.
    Attributes:
        file: what the file says.
        overlay: what the region changes about it.
    """

    def __init__(self, file: NodeConfig, path: Path | None, pipelines: Pipelines, announcer: Announcer) -> None:
        self.file = file
        self.overlay: Overlay = {}
        self._path = path
        self._pipelines = pipelines
        self._announcer = announcer
        _warn_about_renamed_keys(file)

    def in_force(self) -> NodeConfig:
        """The file with the overlay on it. Raises: OverlayError: the overlay does not fit the file."""
        return overlaid(self.file, self.overlay)

    def restore_overlay(self, overlay: Overlay) -> None:
        """Take up the overlay of an earlier run, before the pipelines start; one that does not fit any more is dropped."""
        try:
            overlaid(self.file, overlay)
        except HedgerowError as error:  # it fitted when it came; the file has changed since
            log.warning("overlay-refused", error=str(error), remedy=error.remedy)
            self._announcer.event("overlay-refused", {"error": str(error)})
        else:
            self.overlay = overlay

    async def set_overlay(self, overlay: Overlay) -> None:
        """Put another overlay into force. Raises: HedgerowError: it cannot be; nothing has changed."""
        await self._pipelines.reload(overlaid(self.file, overlay))
        self.overlay = overlay

    async def reload(self, text: str | None = None) -> dict[str, list[str]]:
        """Put a new configuration into force; if any part of it is bad, nothing changes.

        Args:
            text: the configuration; None reads the node's file again.
        Returns: names of pipelines added, changed, removed and kept.
        Raises: HedgerowError: why it cannot be used; the old configuration stays in force.
        """
        file = await asyncio.to_thread(self._read, text)
        for section in _FIXED:
            if getattr(file, section).model_dump() != getattr(self.file, section).model_dump():
                raise CommandError(
                    f"A reload cannot change `{section}:`",
                    code="restart-needed",
                    remedy="Restart the node for that; pipelines and models can be changed by a reload.",
                )
        outcome = await self._pipelines.reload(overlaid(file, self.overlay))
        self.file = file
        _warn_about_renamed_keys(file)
        log.info("reloaded", **outcome)
        self._announcer.event("reloaded", dict(outcome))
        return outcome

    async def reload_on_signal(self) -> None:
        """Read the file again. Never raises: what is wrong with it is logged and published."""
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
                remedy="Send the configuration as `config`.",
            )
        return configfile.load(self._path)


def _warn_about_renamed_keys(file: NodeConfig) -> None:
    for former, current in file.renamed_keys.items():
        log.warning("config-key-renamed", key=former, remedy=f"Rename it to `{current}`.")

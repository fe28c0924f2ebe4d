"""The node's live configuration: its file, signed pipelines, and what the region and operators have changed.

    file ─▶ + changes by the desired document ─▶ + changes by `adjust` ─▶ + signed pipelines ─▶ effective

Whatever cannot be applied to a changed file is dropped and reported: nothing from outside keeps the node from its own file.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow import configfile
from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.configfile import merge
from hedgerow.errors import CommandError, HedgerowError
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.pipelines.adjustments import (
    AdjustmentRefused,
    Changes,
    adjusted,
    nested,
    require_keeps_running,
    require_may_stop,
)
from hedgerow.node.pipelines.overlay import Overlay, overlaid
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.telemetry import systemd
from hedgerow.wire.fleet import ModelRef

_ALLOW_SIGNED: Final = "Set `remote: {signed_pipelines: true}` in it; the setting says what that allows."

log = structlog.get_logger(__name__)

_FIXED = ("node", "broker", "outbox", "fleet", "metrics", "log")
"""Sections that a reload cannot change."""


@dataclass(frozen=True, slots=True)
class SignedPipelines:
    """Verified pipelines of an owner.

    Attributes:
        ref: their version.
        pipelines: complete configurations by name.
        folder: the files that their stages may read.
    """

    ref: ModelRef
    pipelines: Mapping[str, Mapping[str, Any]]
    folder: Path

    def added_to(self, file: NodeConfig) -> NodeConfig:
        """Return a configuration with these pipelines, in place of those with the same names."""
        added = {
            name: PipelineConfig.model_validate({**each, "folder": self.folder})
            for name, each in self.pipelines.items()
        }
        return file.model_copy(update={"pipelines": {**file.pipelines, **added}})


class LiveConfig:
    """Changes the configuration while the node runs: by reloading the file, by desired documents and by `adjust`.

    Args:
        file: the file's content.
        path: the file; None: the node was started without one.
        pipelines: the node's pipelines.
        announcer: publishes changes and refusals.
        renew_links: reconnects with a password file's new password; raises if the broker refuses that.
    Attributes:
        file: the file's content, without changes.
        overlay: the region's changes to pipelines.
        signed: the signed pipelines that run.
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
        self.signed: SignedPipelines | None = None
        self._adjustments: dict[str, dict[str, Any]] = {}
        self._path = path
        self._pipelines = pipelines
        self._announcer = announcer
        self._changing = asyncio.Lock()
        self._renew_links = renew_links
        _warn_about_renamed_keys(file)

    def effective(self) -> NodeConfig:
        """Return the file with all changes applied. Raises: HedgerowError: they do not fit the file."""
        return _changed(self.file, self.signed, self.overlay, self._adjustments)

    def check_overlay(self, overlay: Overlay) -> None:
        """Raises: HedgerowError: the region may not make these changes, or they are invalid."""
        _with_overlay(self.file, overlay)

    def restore_overlay(self, overlay: Overlay, signed: SignedPipelines | None = None) -> None:
        """Restore an earlier run's changes, before the pipelines start; discard what no longer fits the file."""
        self.signed, self.overlay = self._fitting(self.file, signed, overlay)

    async def set_overlay(self, overlay: Overlay, signed: SignedPipelines | None = None) -> None:
        """Apply another overlay, and other signed pipelines.

        Raises: HedgerowError: it is invalid, or not allowed; nothing has changed.
        """

        def commit() -> None:
            self.overlay, self.signed = overlay, signed

        async with self._changing:
            effective = _changed(self.file, signed, overlay, self._adjustments)
            now = {} if self.signed is None else self.signed.pipelines
            then = effective.pipelines
            require_keeps_running(self.file, now.keys(), then.keys(), _replaced(self.file, signed))
            await self._apply(effective, self.file, commit)

    async def adjust(self, pipeline: str, changes: Mapping[str, Any]) -> dict[str, list[str]]:
        """Change settings of a pipeline until the node restarts or reloads its file; no changes: take them back.

        Raises: HedgerowError: one is not allowed, or out of limits; nothing has changed.
        """
        async with self._changing:
            if self.signed is not None and pipeline in self.signed.pipelines:
                raise _is_signed(pipeline)
            adjusted(self.file, {pipeline: changes})
            wanted = dict(self._adjustments)
            if changes:
                wanted[pipeline] = copy.deepcopy(wanted.get(pipeline, {}))
                merge(wanted[pipeline], nested(changes))
            else:
                wanted.pop(pipeline, None)
            effective = _changed(self.file, self.signed, self.overlay, wanted)
            outcome = await self._apply(effective, self.file, lambda: setattr(self, "_adjustments", wanted))
        log.info("adjusted", pipeline=pipeline, changes=dict(changes), **outcome)
        self._announcer.event("adjusted", {"changes": dict(changes)}, pipeline)
        return outcome

    def require_may_stop(self, names: Iterable[str]) -> None:
        """Raises: AdjustmentRefused: one of these pipelines has to keep running, says the node's file."""
        require_may_stop(self.file, list(names))

    async def reload(self) -> dict[str, list[str]]:
        """Read the node's file again; if any part of it is invalid, nothing changes. Adjustments end with it.

        Returns: names of pipelines `added`, `changed`, `removed` and `kept`.
        Raises: HedgerowError: it is invalid.
        """
        file = await asyncio.to_thread(self._read)
        for section in _FIXED:
            if getattr(file, section).model_dump() != getattr(self.file, section).model_dump():
                raise CommandError(
                    f"A reload cannot change `{section}:`",
                    code="restart-needed",
                    remedy="Restart the node. A reload can change pipelines and models.",
                )
        async with self._changing:
            await self._renew_links()
            signed, overlay = self._fitting(file, self.signed, self.overlay)

            def commit() -> None:
                self.file, self.signed, self.overlay, self._adjustments = file, signed, overlay, {}

            outcome = await self._apply(_changed(file, signed, overlay, {}), file, commit)
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
            self._announcer.event("reload-refused", {"code": error.code, "error": error})
        finally:
            systemd.ready()

    def _read(self) -> NodeConfig:
        if self._path is None:
            raise CommandError(
                "The node was not started from a file",
                code="no-config-file",
                remedy="Start it from a file: `hedgerow node run node.yaml`.",
            )
        return configfile.load(self._path)

    def _fitting(
        self, file: NodeConfig, signed: SignedPipelines | None, overlay: Overlay
    ) -> tuple[SignedPipelines | None, Overlay]:
        """Return what the file allows of signed pipelines and overlay; report what it does not."""
        if signed is not None and not file.remote.signed_pipelines:
            self._drop_overlay(CommandError("The file does not allow signed pipelines", remedy=_ALLOW_SIGNED))
            signed = None
        try:
            require_keeps_running(file, (), (), _replaced(file, signed))
        except AdjustmentRefused as error:
            self._drop_overlay(error)
            signed = None
        try:
            _with_overlay(file, overlay)
        except HedgerowError as error:
            self._drop_overlay(error)
            overlay = {}
        return signed, overlay

    def _drop_overlay(self, error: HedgerowError) -> None:
        log.warning("overlay-refused", error=str(error), remedy=error.remedy)
        self._announcer.event("overlay-refused", {"error": error})

    async def _apply(
        self, effective: NodeConfig, file: NodeConfig, committed: Callable[[], None]
    ) -> dict[str, list[str]]:
        """Change the pipelines; those of the file that only stop keep what waits for them at the broker."""
        return await self._pipelines.reload(effective, committed, stopped=file.pipelines.keys())


def _changed(file: NodeConfig, signed: SignedPipelines | None, overlay: Overlay, adjustments: Changes) -> NodeConfig:
    config, others = _with_overlay(file, overlay), {} if signed is None else signed.pipelines
    for name in overlay.keys() & others.keys():
        raise _is_signed(name)
    mine = {name: each for name, each in adjustments.items() if name in config.pipelines and name not in others}
    config = adjusted(config, mine)
    return config if signed is None else signed.added_to(config)


def _replaced(file: NodeConfig, signed: SignedPipelines | None) -> Collection[str]:
    """Return the pipelines of the file in whose place signed ones run."""
    return () if signed is None else file.pipelines.keys() & signed.pipelines.keys()


def _is_signed(pipeline: str) -> AdjustmentRefused:
    return AdjustmentRefused(
        f"Pipeline {pipeline} is signed, and runs as it was signed",
        remedy="Its owner changes it: `hedgerow trust publish-pipelines` with another version.",
    )


def _with_overlay(file: NodeConfig, overlay: Overlay) -> NodeConfig:
    if not file.remote.unsigned_pipelines:
        return adjusted(file, overlay)
    require_may_stop(file, [name for name, changes in overlay.items() if changes is None])
    return overlaid(file, overlay)


def _warn_about_renamed_keys(file: NodeConfig) -> None:
    for former, current in file.renamed_keys.items():
        log.warning("config-key-renamed", key=former, remedy=f"Rename it to `{current}`.")

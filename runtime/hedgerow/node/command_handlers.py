"""Handlers of the node's commands."""

from __future__ import annotations

import asyncio
import base64
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from hedgerow import __version__, backends
from hedgerow.errors import BackendMissing, CommandError, published
from hedgerow.node.commands import Handler, accept_only, choice
from hedgerow.node.control import NodeControl
from hedgerow.node.health import running_models
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.wire import messages as wire

LARGEST_SNAPSHOT = 8 << 20
"""Most bytes of a frame in a `snapshot` reply."""


class CommandHandlers:
    """One method per command: takes the command's arguments, returns the reply's value.

    Args:
        node: the node to command.
    """

    def __init__(self, node: NodeControl) -> None:
        self._node = node

    def handlers(self) -> dict[str, Handler]:
        """Return all handlers by command name; `remote: commands` in the node's file decides which are carried out."""
        return {
            "ping": self.ping,
            "health": self.health,
            "info": self.info,
            "pause": self.pause,
            "resume": self.resume,
            "adjust": self.adjust,
            "reload": self.reload,
            "snapshot": self.snapshot,
            "release": self.release,
            "stop": self.stop,
        }

    async def ping(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Reply immediately."""
        accept_only(args)
        return {"at": time.time(), "session": self._node.session}

    async def info(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return versions, devices, models with digests, and pipelines."""
        accept_only(args)
        node = self._node
        return {
            "hedgerow": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": node.cores,
            "session": node.session,
            "backends": await asyncio.to_thread(_backends),  # imports libraries and queries drivers
            "models": running_models(node.runners.values()),
            "pipelines": {
                name: {
                    "state": runner.state,
                    "config": runner.built.digest,
                    "subscribe": list(runner.built.config.subscribe),
                    "stages": [stage.name for stage in runner.built.config.stages],
                    "models": sorted({model.name for model in runner.built.models()}),
                }
                for name, runner in node.runners.items()
            }
            | {name: {"state": "failed", "error": published(error)[0]} for name, error in node.failures.items()},
            "metrics_port": node.probe_port,
        }

    async def health(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return a current health report."""
        accept_only(args)
        return self._node.health().model_dump(by_alias=True, exclude_none=True)

    async def pause(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Pause pipelines: they take no more frames."""
        return await self._each(args, PipelineRunner.pause, self._node.require_may_stop)

    async def resume(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Resume paused pipelines."""
        return await self._each(args, PipelineRunner.resume)

    async def adjust(self, args: Mapping[str, Any]) -> dict[str, list[str]]:
        """Change queue, rate, lanes, batch or thresholds of a pipeline, within the limits of the node's file."""
        name = choice(args, "pipeline", self._node.config.pipelines)
        return await self._node.adjust(name, {key: value for key, value in args.items() if key != "pipeline"})

    async def reload(self, args: Mapping[str, Any]) -> dict[str, list[str]]:
        """Read the node's file again."""
        if "config" in args:
            raise CommandError(
                "`reload` takes the configuration from the node's own file, not from a command",
                code="config-not-accepted",
                remedy="Change the file on the node, then `reload`; or `adjust` what may be changed from outside; or publish "
                "the pipelines signed, for a node whose file has `remote: {signed_pipelines: true}`.",
            )
        accept_only(args)
        return await self._node.reload()

    async def snapshot(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pipeline's last result and the frame it came from."""
        accept_only(args, "pipeline")
        name = choice(args, "pipeline", self._node.runners)
        runner = self._node.runners[name]
        snapshot = runner.snapshot
        if snapshot is None:
            raise CommandError(
                f"Pipeline {name} has published no result yet",
                code="no-snapshot",
                remedy="Wait for a frame, or publish one.",
            )
        frame, result = snapshot.frame, snapshot.result
        value: dict[str, Any] = {
            "frame": wire.frame_body(frame),
            "content_type": frame.content_type,
            "payload_bytes": len(frame.payload),
            "result_content_type": result.content_type,
        }
        if runner.built.config.publish.fields:  # as in dead letters: the payload has what is kept back
            value["payload_omitted"] = "kept-back"
        elif len(frame.payload) <= LARGEST_SNAPSHOT:
            value["payload_base64"] = base64.b64encode(frame.payload).decode()
        if result.content_type in (wire.JSON, wire.MSGPACK):
            value["result"] = wire.decode_payload(result.payload, result.content_type)
        else:
            value["result_base64"] = base64.b64encode(result.payload).decode()
        return value

    async def release(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Release a model version from quarantine, and retry it if the region desires it."""
        accept_only(args, "digest")
        quarantined = {each.digest: each for each in self._node.swaps.quarantined()}
        digest = choice(args, "digest", quarantined)
        await self._node.release(digest)
        return quarantined[digest].model_dump(include={"digest", "name", "version", "reason"})

    async def stop(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Drain and stop."""
        accept_only(args)
        self._node.require_may_stop(self._node.runners)
        asyncio.get_running_loop().call_soon(self._node.stop)
        return {"stopping": True, "drain_s": self._node.config.node.drain_s}

    async def _each(
        self,
        args: Mapping[str, Any],
        act: Callable[[PipelineRunner], Awaitable[None]],
        check: Callable[[list[str]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Act on the named pipeline, or on all if none is named, unless the check of the names raises."""
        accept_only(args, "pipeline")
        runners = self._node.runners
        names = [choice(args, "pipeline", runners)] if "pipeline" in args else list(runners)
        check(names)
        for name in names:
            if runners[name].state == "stopping":  # the pipeline that replaces it would not be affected
                raise CommandError(
                    f"Pipeline {name} is being replaced or stopped", code="busy", remedy="Retry in a few seconds."
                )
            await act(runners[name])
        return {"pipelines": {name: runners[name].state for name in names}}


def _backends() -> dict[str, Any]:
    """Return version and devices of every installed backend."""
    found: dict[str, Any] = {}
    for backend in backends.backends():
        with suppress(BackendMissing):
            found[backend.name] = {"version": backend.version, "devices": list(backend.devices())}
    return found

"""What a node answers to each command."""

from __future__ import annotations

import asyncio
import base64
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from hedgerow import __version__, backends
from hedgerow.errors import BackendMissing, CommandError
from hedgerow.node.commands import Handler, argument, only
from hedgerow.node.control import NodeControl
from hedgerow.node.health import serving
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.wire import messages as wire

LARGEST_SNAPSHOT = 8 << 20
"""Bytes of a frame that a `snapshot` reply may carry."""


class CommandHandlers:
    """The commands of a node: each takes the command's arguments and returns the value of the reply.

    Args:
        node: the node that they are about.
    """

    def __init__(self, node: NodeControl) -> None:
        self._node = node

    def handlers(self) -> dict[str, Handler]:
        """Every command, by name."""
        return {
            "ping": self.ping,
            "health": self.health,
            "info": self.info,
            "pause": self.pause,
            "resume": self.resume,
            "reload": self.reload,
            "snapshot": self.snapshot,
            "release": self.release,
            "stop": self.stop,
        }

    async def ping(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Reply at once."""
        only(args)
        return {"at": time.time(), "session": self._node.session}

    async def info(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Versions, devices, models with digests, pipelines."""
        only(args)
        node = self._node
        return {
            "hedgerow": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": node.cores,
            "session": node.session,
            "backends": await asyncio.to_thread(_backends),  # imports libraries, asks drivers
            "models": serving(node.runners.values()),
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
            | {name: {"state": "failed", "error": str(error)} for name, error in node.failures.items()},
            "metrics_port": node.probe_port,
        }

    async def health(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The health report of now."""
        only(args)
        return self._node.health().model_dump(by_alias=True, exclude_none=True)

    async def pause(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Stop taking frames."""
        return await self._each(args, PipelineRunner.pause)

    async def resume(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Take frames again."""
        return await self._each(args, PipelineRunner.resume)

    async def reload(self, args: Mapping[str, Any]) -> dict[str, list[str]]:
        """Put a new configuration into force."""
        only(args, "config")
        text = args.get("config")
        if text is not None and not isinstance(text, str):
            raise CommandError("`config` is not a text", code="bad-argument", remedy="Send the YAML as one string.")
        return await self._node.reload(text)

    async def snapshot(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The last frame of a pipeline that gave a result, and that result."""
        only(args, "pipeline")
        name = argument(args, "pipeline", self._node.runners)
        snapshot = self._node.runners[name].snapshot
        if snapshot is None:
            raise CommandError(
                f"Pipeline {name} has made no result yet",
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
        if len(frame.payload) <= LARGEST_SNAPSHOT:
            value["payload_base64"] = base64.b64encode(frame.payload).decode()
        if result.content_type in (wire.JSON, wire.MSGPACK):
            value["result"] = wire.decode_payload(result.payload, result.content_type)
        else:
            value["result_base64"] = base64.b64encode(result.payload).decode()
        return value

    async def release(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Release a version of a model from quarantine, and try again what the region wants."""
        only(args, "digest")
        held = {each.digest: each for each in self._node.swaps.quarantined()}
        digest = argument(args, "digest", held)
        await self._node.release(digest)
        return held[digest].model_dump(include={"digest", "name", "version", "reason"})

    async def stop(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Drain and stop."""
        only(args)
        asyncio.get_running_loop().call_soon(self._node.stop)
        return {"stopping": True, "drain_s": self._node.config.node.drain_s}

    async def _each(self, args: Mapping[str, Any], act: Callable[[PipelineRunner], Awaitable[None]]) -> dict[str, Any]:
        """Act on one pipeline, or, if none is named, on all."""
        only(args, "pipeline")
        runners = self._node.runners
        names = [argument(args, "pipeline", runners)] if "pipeline" in args else list(runners)
        for name in names:
            if runners[name].state == "stopping":  # its successor would not learn of it
                raise CommandError(
                    f"Pipeline {name} is being replaced or stopped", code="busy", remedy="Ask again in a moment."
                )
            await act(runners[name])
        return {"pipelines": {name: runners[name].state for name in names}}


def _backends() -> dict[str, Any]:
    """Version and devices of every backend that is installed."""
    found: dict[str, Any] = {}
    for backend in backends.backends():
        with suppress(BackendMissing):
            found[backend.name] = {"version": backend.version, "devices": list(backend.devices())}
    return found

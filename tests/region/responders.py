"""Simulated nodes on a real broker: they receive desired documents and send reports and health, but run no models.

They replace real nodes in tests of the region: many, fast, and bad on demand. Each keeps a node's promises: it ignores older
generations, reports what it has accepted, and rolls a harmful version back by itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.node.commands import CommandServer
from hedgerow.topics import EVERY_NODE, ROOT, Address, Channel, parse
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined, Reported, ReportedModel
from hedgerow.wire.messages import ErrorBody, Health, ModelHealth, PipelineHealth, Status

Behaviour = Callable[[ModelRef], str]
"""Effect of a version on a node: `good`; noticed by the node: `golden-failed`, `not-finite` and `memory-growth` (in canary
analysis), `crashes` (its process ends, and it does not try again); visible in health only: `errors`, `slow`, `leaks`,
`drifts`, `restarts`; or `silent`: it sends nothing any more."""
_IN_CANARY_ANALYSIS = ("not-finite", "memory-growth")


def ref(version: str, name: str = "faces") -> ModelRef:
    """Return a reference to a version that does not exist."""
    return ModelRef(name=name, version=version, digest=digest(f"{name}{version}"))


def digest(text: str) -> str:
    return f"sha256:{text.encode().hex():0>64}"


def good(_: ModelRef) -> str:
    return "good"


class Responder:
    """A simulated node. `seen` has the generations it received, in order."""

    def __init__(self, address: Address, behaves: Behaviour, publish: Callable[..., None], **labels: str) -> None:
        self.address = address
        self.behaves = behaves
        self.labels = labels
        self.seen: list[int] = []
        self.desired: Desired | None = None
        self.serving: dict[str, ReportedModel] = {}
        self.online = True
        self._publish = publish
        self._generation = 0
        self._received = self._dead = self._frames = 0
        self._memory_bytes = 100 << 20
        self._run = 1
        self._quarantined: list[Quarantined] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def version(self) -> str | None:
        serving = self.serving.get("faces")
        return serving.model.version if serving is not None and serving.model is not None else None

    def take(self, payload: bytes) -> None:
        desired = Desired.model_validate_json(payload)
        assert desired.node == str(self.address)
        if not self.online:
            return
        self.seen.append(desired.generation)
        if desired.generation <= self._generation:
            return
        self._generation = desired.generation
        self.desired = desired
        task = asyncio.get_running_loop().create_task(self._reconcile(desired))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconcile(self, desired: Desired) -> None:
        self.report("in-progress", step="fetch")
        await asyncio.sleep(random.uniform(0.0, 0.05))
        for name, desired_ref in desired.models.items():
            current = self.serving.get(name)
            if current is not None and current.model == desired_ref:
                continue
            effect = self.behaves(desired_ref)
            if self._generation != desired.generation:
                return
            if effect == "silent":
                self.online = False
                return
            if effect == "crashes":
                await self._crash(name, desired_ref)
                return
            if effect in ("golden-failed", *_IN_CANARY_ANALYSIS):
                error = ErrorBody(code=effect, message=f"{desired_ref} was rolled back", remedy="Fix the model.")
                self.report("failed", error=error, rolled_back=[name] if effect in _IN_CANARY_ANALYSIS else [])
                return
            self._frames = 0
            self.serving[name] = ReportedModel(
                model=desired_ref, variant="onnx-fp32", file_digest=digest(f"file{desired_ref.version}"), backend="onnxruntime",
                device="CPU", since=time.time(), results=100, previous=current.model if current else None,
            )  # fmt: skip
        for name in list(self.serving):
            if name not in desired.models:
                del self.serving[name]
        self.report("succeeded")
        self.health()

    async def _crash(self, name: str, desired_ref: ModelRef) -> None:
        """End the process: the broker publishes its will, and the next run quarantines the version."""
        self._status("offline")
        await asyncio.sleep(0.2)  # the time a process takes to restart
        self._begin_run()
        reason = "the process crashed in step `switch`"
        self._quarantined = [
            Quarantined(digest=desired_ref.digest, name=desired_ref.name, version=desired_ref.version, code="crashed", reason=reason, at=time.time())
        ]  # fmt: skip
        self.birth()
        error = ErrorBody(
            code="quarantined", message=f"{desired_ref} is in quarantine here: {reason}", remedy="Fix the model."
        )
        self.report("rejected", error=error)

    def _begin_run(self) -> None:
        self._run += 1
        self._received = self._dead = self._frames = 0
        now = time.time()
        self.serving = {name: one.model_copy(update={"since": now}) for name, one in self.serving.items()}

    @property
    def session(self) -> str:
        return f"run-{self._run}"

    def report(self, state: str, **more: Any) -> None:
        self._send(
            Channel.REPORTED,
            Reported.model_validate(
                {"node": str(self.address), "session": self.session, "at": time.time(), "generation": self._generation,
                 "state": state, "models": self.serving, "quarantined": self._quarantined,
                 "labels": self.labels} | more
            ),
        )  # fmt: skip

    def health(self) -> None:
        """Send a health report, with the effects of versions that health shows."""
        effect = {self.behaves(one.model) for one in self.serving.values() if one.model is not None}
        if "restarts" in effect:
            self._begin_run()
            self.birth()
            self.report("succeeded")
        self._received += 200
        self._frames += 200
        self._dead += 100 if "errors" in effect else 0
        self._memory_bytes += 300 << 20 if "leaks" in effect else 0
        pipeline = PipelineHealth(
            state="running", received=self._received, dead={"bad": self._dead}, out=self._received - self._dead,
            latency_p99_ms=15.0 if "slow" in effect else 5.0, models=list(self.serving),
        )  # fmt: skip
        models = {
            name: ModelHealth(
                digest=one.file_digest,
                backend=one.backend,
                device=one.device,
                device_asked="CPU",
                frames=self._frames,
                drift=0.9 if "drifts" in effect else 0.1,
            )
            for name, one in self.serving.items()
        }
        message = Health(
            node=str(self.address), session=self.session, at=time.time(), uptime_s=1, state="ok",
            pipelines={"doors": pipeline}, models=models, memory_bytes=self._memory_bytes,
        )  # fmt: skip
        self._send(Channel.HEALTH, message)

    def birth(self) -> None:
        self._status("online")

    def _status(self, state: str) -> None:
        message = {
            "state": state,
            "session": self.session,
            "node": str(self.address),
            "version": "0",
            "at": time.time(),
        }
        self._send(Channel.STATUS, Status.model_validate(message))

    def _send(self, channel: Channel, message: Any) -> None:
        if self.online:
            retain = channel is not Channel.HEALTH
            self._publish(self.address.topic(channel), message.encode(), qos=int(retain), retain=retain)


class Responders:
    """Many simulated nodes on one connection.

    Args:
        url: of the broker.
        addresses: of the nodes.
        behaves: effect of a version; may be changed later for each node.
        beat_s: seconds between two health reports of a node.
        labels: of every node.
    """

    def __init__(
        self, url: str, addresses: Sequence[Address], behaves: Behaviour = good, beat_s: float = 0.5, **labels: str
    ) -> None:
        self.url = url
        self._beat_s = beat_s
        self.client = Client(ClientOptions(url=url, client_id="responders", max_backoff_s=0.3), self._take)
        self.nodes = {address: Responder(address, behaves, self.client.publish, **labels) for address in addresses}
        self.desks = {address: CommandServer(address, self.client, {"ping": self._ping}) for address in addresses}
        self._beats: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, number: int) -> Responder:
        return list(self.nodes.values())[number]

    def versions(self) -> list[str | None]:
        return [node.version for node in self.nodes.values()]

    async def __aenter__(self) -> Responders:
        await self.client.__aenter__()
        await self.client.subscribe({address.topic(Channel.DESIRED): 1 for address in self.nodes})
        await self.client.subscribe(
            {f"{ROOT}/{region}/+/+/command/+": 1 for region in {one.region for one in self.nodes}}
        )
        await self.client.wait_connected(30)
        for node in self.nodes.values():
            node.birth()
            node.report("succeeded")
            node.health()
        self._beats = [asyncio.get_running_loop().create_task(self._beat())]
        return self

    async def __aexit__(self, *error: Any) -> None:
        for beat in self._beats:
            beat.cancel()
        await self.client.close(timeout_s=0.2)

    async def _beat(self) -> None:
        while True:  # in ten parts, to avoid bursts
            for part in range(10):
                await asyncio.sleep(self._beat_s / 10)
                for node in list(self.nodes.values())[part::10]:
                    node.health()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            parsed = parse(message.topic)
            assert parsed is not None
            if parsed.channel is Channel.DESIRED:
                self.nodes[parsed.address].take(bytes(message.payload))
            else:
                self._tasks |= {asyncio.create_task(desk.answer(message)) for desk in self._addressed(parsed.address)}
            self.client.ack(message)

    def _addressed(self, address: Address) -> list[CommandServer]:
        """Return the desks of the addressed nodes that are online."""
        online = [one for one, node in self.nodes.items() if node.online and one.site == address.site]
        return [self.desks[one] for one in online if address.node in (EVERY_NODE, one.node)]

    async def _ping(self, args: Any) -> dict[str, float]:
        return {"at": time.time()}

"""Nodes that speak of models and run none: they take Desired in and say Reported and Health, over a real broker.

They stand in for real ones where it is the region that is tested: many, quick, and bad on demand. Each does what a node
promises: older generations are ignored, what was taken in is reported, a version that does harm goes back by itself.
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
"""What a version does to the node that takes it: `good`; what the node notices itself: `golden-failed`, `not-finite` and
`memory-growth` (on probation), `crashes` (its process ends, and it does not try again); what only its health shows: `errors`,
`slow`, `leaks`, `drifts`, `restarts`; or `silent`: nothing is heard of it any more."""
_ON_PROBATION = ("not-finite", "memory-growth")


def ref(version: str, name: str = "faces") -> ModelRef:
    """A version of a model that nobody has built."""
    return ModelRef(name=name, version=version, digest=digest(f"{name}{version}"))


def digest(text: str) -> str:
    return f"sha256:{text.encode().hex():0>64}"


def good(_: ModelRef) -> str:
    return "good"


class Responder:
    """One node. `seen` are the generations that came to it, in order."""

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
        for name, wanted in desired.models.items():
            has = self.serving.get(name)
            if has is not None and has.model == wanted:
                continue
            how = self.behaves(wanted)
            if self._generation != desired.generation:
                return
            if how == "silent":
                self.online = False
                return
            if how == "crashes":
                await self._crash(name, wanted)
                return
            if how in ("golden-failed", *_ON_PROBATION):
                error = ErrorBody(code=how, message=f"{wanted} was taken back", remedy="Mend the model.")
                self.report("failed", error=error, rolled_back=[name] if how in _ON_PROBATION else [])
                return
            self._frames = 0
            self.serving[name] = ReportedModel(
                model=wanted, variant="onnx-fp32", file_digest=digest(f"file{wanted.version}"), backend="onnxruntime",
                device="CPU", since=time.time(), results=100, previous=has.model if has else None,
            )  # fmt: skip
        for name in list(self.serving):
            if name not in desired.models:
                del self.serving[name]
        self.report("succeeded")
        self.health()

    async def _crash(self, name: str, wanted: ModelRef) -> None:
        """The process ends, the broker says so, and the next run does not try it again."""
        self._status("offline")
        await asyncio.sleep(0.2)  # so long a process takes to start again
        self._begin_run()
        why = "the process crashed in step `switch`"
        self._quarantined = [
            Quarantined(digest=wanted.digest, name=wanted.name, version=wanted.version, code="crashed", reason=why, at=time.time())
        ]  # fmt: skip
        self.birth()
        error = ErrorBody(
            code="quarantined", message=f"{wanted} is in quarantine here: {why}", remedy="Mend the model."
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
        self._say(
            Channel.REPORTED,
            Reported.model_validate(
                {"node": str(self.address), "session": self.session, "at": time.time(), "generation": self._generation,
                 "state": state, "models": self.serving, "quarantined": self._quarantined,
                 "labels": {**self.labels, **(self.desired.labels if self.desired else {})}} | more
            ),
        )  # fmt: skip

    def health(self) -> None:
        """A health report; a version that makes errors or is slow shows it here."""
        how = {self.behaves(one.model) for one in self.serving.values() if one.model is not None}
        if "restarts" in how:
            self._begin_run()
            self.birth()
            self.report("succeeded")
        self._received += 200
        self._frames += 200
        self._dead += 100 if "errors" in how else 0
        self._memory_bytes += 300 << 20 if "leaks" in how else 0
        pipeline = PipelineHealth(
            state="running", received=self._received, dead={"bad": self._dead}, out=self._received - self._dead,
            latency_p99_ms=15.0 if "slow" in how else 5.0, models=list(self.serving),
        )  # fmt: skip
        models = {
            name: ModelHealth(
                digest=one.file_digest,
                backend=one.backend,
                device=one.device,
                device_asked="CPU",
                frames=self._frames,
                drift=0.9 if "drifts" in how else 0.1,
            )
            for name, one in self.serving.items()
        }
        said = Health(
            node=str(self.address), session=self.session, at=time.time(), uptime_s=1, state="ok",
            pipelines={"doors": pipeline}, models=models, memory_bytes=self._memory_bytes,
        )  # fmt: skip
        self._say(Channel.HEALTH, said)

    def birth(self) -> None:
        self._status("online")

    def _status(self, state: str) -> None:
        said = {"state": state, "session": self.session, "node": str(self.address), "version": "0", "at": time.time()}
        self._say(Channel.STATUS, Status.model_validate(said))

    def _say(self, channel: Channel, said: Any) -> None:
        if self.online:
            retain = channel is not Channel.HEALTH
            self._publish(self.address.topic(channel), said.encode(), qos=int(retain), retain=retain)


class Responders:
    """Many of them on one link, each with its own health.

    Args:
        addresses: who they are.
        behaves: what a version does to them; may be changed later, for each.
        beat_s: seconds between two health reports of a node.
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
        while True:  # in ten parts, so that it is no burst
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
                self._tasks |= {asyncio.create_task(desk.answer(message)) for desk in self._asked(parsed.address)}
            self.client.ack(message)

    def _asked(self, address: Address) -> list[CommandServer]:
        """Who is meant and has a link."""
        online = [one for one, node in self.nodes.items() if node.online and one.site == address.site]
        return [self.desks[one] for one in online if address.node in (EVERY_NODE, one.node)]

    async def _ping(self, args: Any) -> dict[str, float]:
        return {"at": time.time()}

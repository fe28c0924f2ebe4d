"""Random histories of nodes that are copied, restored, stopped and killed, while bridges are cut and the region's service dies.

Many histories go on at once, each under a name of its own, over the same real brokers, bridges and process of the region. What is
right is decided by an independent model: it knows what the test has made, and reads what the disks hold with SQLite alone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.region.clones.brokers import Brokers
from tests.region.clones.disks import FILE, copy_disk, store, waiting
from tests.region.conftest import REGION, CollectorProcess, eventually

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outbox import Ack, Outbox
from hedgerow.topics import Address, Channel, late
from hedgerow.wire.messages import NAME_NOTICE, Health, Instance, NameNotice

SITES = ("hall", "yard", "far")
AT_ONCE = 40
PROMPT_S = 4.0
"""A round of health reports that takes longer, on a busy machine, does not keep pace, and does not count."""


class Node:
    """The part of a node that sends durable results: an outbox with its link. It runs while `client` is set.

    Attributes:
        had: ids of the results that its disk has had.
        told: whom the region has named to it.
    """

    def __init__(self, address: Address, folder: Path, port: int) -> None:
        self.address, self.folder, self.port = address, folder, port
        self.had: set[str] = set()
        self.client: Client | None = None
        self.told: set[str] = set()
        self.events: list[str] = []

    async def start(self) -> None:
        self.session = uuid.uuid4().hex
        self.started = time.monotonic() - 1000.0
        options = ClientOptions(url=f"mqtt://127.0.0.1:{self.port}", client_id=self.session, max_backoff_s=0.3)
        client = Client(options, self._take, lambda up, _: self.outbox.link_changed(up=up))
        self.outbox = Outbox(
            self.folder / FILE, gap_topic=self.address.topic(Channel.EVENT, "gap"), late=late, publish=client.publish,
            on_event=lambda kind, _: self.events.append(kind), window=16, max_bytes=2 << 20,
        )  # fmt: skip
        await self.outbox.__aenter__()
        self.client = await client.__aenter__()
        await client.subscribe({self.address.topic(Channel.ACK): 1, self.address.topic(Channel.COMMAND, "ping"): 1})

    async def stop(self) -> None:
        client, self.client = self.client, None
        assert client is not None
        await client.close(timeout_s=0.2)
        await self.outbox.close()

    async def kill(self) -> None:
        """End as by SIGKILL: what is on the disk now stays; what the process would still do is done to another disk."""
        client, self.client = self.client, None
        assert client is not None
        if client._session.link is not None:
            client._session.link.abort(ConnectionAbortedError("killed"))
        before, left = self.folder, self.folder.with_name(uuid.uuid4().hex)
        copy_disk(before, left)
        self.folder = left
        await client.close(timeout_s=0)
        await self.outbox.close()
        shutil.rmtree(before)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.endswith("/ack"):
                self.outbox.acknowledge(Ack.decode(message.payload))
            for name, text in message.properties.user_properties:
                if name == NAME_NOTICE:
                    self.told |= {run.session for run in NameNotice.model_validate_json(text).runs}
            assert self.client is None or self.client.ack(message) is None

    @property
    def waits(self) -> set[str]:
        return waiting(self.folder / FILE) if (self.folder / FILE).exists() else set()

    @property
    def entries(self) -> int:
        return self.outbox.status.entries + self.outbox.status.appending

    def report(self) -> None:
        uptime_s = time.monotonic() - self.started
        here = Instance(host=self.session[:8], address="127.0.0.1")
        health = Health(node=str(self.address), session=self.session, at=time.time(), uptime_s=uptime_s, state="ok", instance=here)  # fmt: skip
        assert self.client is not None
        self.client.publish(self.address.topic(Channel.HEALTH), health.encode(), qos=1)


class History:
    """What happens to the nodes of one name.

    Attributes:
        confirmed: results that were on a disk when the test was told so.
        uncertain: results whose node was killed before it said so.
        discarded: results that waited on disks that were replaced by earlier copies of theirs.
    """

    def __init__(self, seed: int, brokers: Brokers, folder: Path) -> None:
        self.seed, self.brokers, self.folder = seed, brokers, folder
        self.dice = random.Random(seed)
        self.address = Address(REGION, "shop", f"n{seed}")
        self.nodes: list[Node] = []
        self.backups: list[tuple[Path, set[str]]] = []
        self.confirmed: set[str] = set()
        self.uncertain: set[str] = set()
        self.discarded: set[str] = set()
        self.left: set[str] = set()
        self._made = 0

    def _new_disk(self) -> Path:
        return self.folder / f"{self.seed}-{uuid.uuid4().hex}"

    def _new_node(self, folder: Path, had: set[str]) -> Node:
        node = Node(self.address, folder, self.brokers.at[self.dice.choice(SITES)].port)
        node.had = set(had)
        self.nodes.append(node)
        return node

    def _names(self, count: int) -> list[str]:
        self._made += count
        return [f"h{self.seed}-{self._made - n}" for n in range(count)]

    async def begin(self) -> None:
        folder = self._new_disk()
        folder.mkdir()
        await self._new_node(folder, set()).start()

    async def step(self) -> None:
        """Let something happen."""
        node = self.dice.choice(self.nodes)
        acts = [self.make] * 6 + [self.end, self.begin_again] * 2 + [self.copy, self.back_up, self.restore, self.kill_while_it_stores]  # fmt: skip
        await self.dice.choice(acts)(node)
        await asyncio.sleep(self.dice.random() * 0.1)  # messages get under way, or not

    async def make(self, node: Node) -> None:
        if node.client is not None:
            names = self._names(self.dice.choice([1, 2, 5, 30]))
            await store(node.outbox.append, self.address, names)
            node.had.update(names)
            self.confirmed.update(names)

    async def kill_while_it_stores(self, node: Node) -> None:
        if node.client is not None:
            names = self._names(10)
            self.uncertain.update(names)
            storing = asyncio.create_task(store(node.outbox.append, self.address, names))
            await asyncio.sleep(self.dice.choice([0, 0, 0.002]))
            await node.kill()
            with suppress(Exception):
                await storing
            node.had |= node.waits

    async def end(self, node: Node) -> None:
        if node.client is not None:
            await (node.stop() if self.dice.random() < 0.5 else node.kill())

    async def begin_again(self, node: Node) -> None:
        if node.client is None:
            await node.start()

    async def copy(self, node: Node) -> None:
        """A copy of its disk, stopped or running, begins to run, at some site."""
        if len(self.nodes) < 4:
            folder = self._new_disk()
            copy_disk(node.folder, folder)
            copy = self._new_node(folder, set())
            copy.had = copy.waits
            await copy.start()

    async def back_up(self, node: Node) -> None:
        folder = self._new_disk()
        copy_disk(node.folder, folder)
        had = waiting(folder / FILE) if (folder / FILE).exists() else set()
        self.backups.append((folder, had))

    async def restore(self, node: Node) -> None:
        """An earlier copy, of its disk or another's, replaces its disk; what only that had is lost with it."""
        if self.backups:
            await self.end(node)
            waits = node.waits
            self.left |= node.had - waits
            self.discarded |= waits
            (backup, had), before, folder = self.dice.choice(self.backups), node.folder, self._new_disk()
            shutil.copytree(backup, folder)
            node.had = set()  # in this order, for audits meanwhile
            node.folder = folder
            node.had = set(had)
            shutil.rmtree(before)
            await node.start()

    def acknowledged(self) -> set[str]:
        """Return the results that have left a disk."""
        left = set(self.left)
        for node in list(self.nodes):
            folder, had = node.folder, set(node.had)
            if had:
                with suppress(sqlite3.OperationalError):  # it is gone: the node was killed, or restored
                    gone = had - waiting(folder / FILE)
                    left |= gone if node.folder == folder else set()
        return left

    async def finish(self) -> None:
        """Let all nodes run, and send what they have. Notes what may be lost."""
        self.uncertain -= self.confirmed
        survive = set().union(*(node.waits for node in self.nodes))
        self.may_be_lost = (self.discarded | self.uncertain) - survive
        for node in self.nodes:
            if node.client is None:
                await node.start()
        await eventually(
            lambda: not any(node.entries for node in self.nodes), lambda: (self.seed, [node.entries for node in self.nodes])
        )  # fmt: skip

    def verdict(self, stored: Counter[str]) -> list[str]:
        """Return what is wrong in the end."""
        mine = {name: stored[name] for name in self.confirmed | self.uncertain}
        lost = [name for name, count in mine.items() if not count and name not in self.may_be_lost]
        twice = [name for name, count in mine.items() if count > 1]
        return [f"seed {self.seed}: {what} {names[:5]}" for what, names in (("lost", lost), ("twice", twice)) if names]


class Region:
    """The region's process, its bridges, and what its store has."""

    def __init__(self, brokers: Brokers, folder: Path) -> None:
        self.brokers = brokers
        self.process = CollectorProcess(brokers.at["region"].url, str(folder / "region.db"), folder)
        self.process.configure()
        self.happened: Counter[str] = Counter()

    async def start(self) -> None:
        await asyncio.to_thread(self.process.start)

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.process.store}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(query).fetchall()

    def stored(self) -> Counter[str]:
        return Counter(name for (name,) in self.rows("SELECT said_id FROM result"))

    def audit(self, histories: Sequence[History]) -> None:
        left = {name: one.seed for one in histories for name in one.acknowledged()}
        lost = sorted(left.keys() - self.stored().keys())
        assert not lost, f"acknowledged and not stored: {lost[:5]}"

    async def trouble(self, dice: random.Random, histories: Sequence[History], done: asyncio.Event) -> None:
        """Cut and mend bridges, and stop, kill and start the service, until the histories are done; audit all the time."""

        async def of_bridges() -> None:
            what = dice.choice(["cut", "cut", "restore", "reset"])
            wan = self.brokers.wans[dice.choice(list(self.brokers.wans))]
            await asyncio.to_thread(getattr(wan, what))
            self.happened[what] += 1

        async def of_the_service() -> None:
            if dice.random() < 0.3:
                self.process.signal(signal.SIGTERM)
                await asyncio.to_thread(self.process.wait)
                self.happened["stopped"] += 1
            else:
                await asyncio.to_thread(self.process.kill)
                self.happened["killed"] += 1
            await self.start()

        async def audits() -> None:
            await asyncio.to_thread(self.audit, histories)
            self.happened["audits"] += 1

        async def repeatedly(act: Callable[[], Awaitable[None]], pause_s: float) -> None:
            while not done.is_set():
                await act()
                with suppress(TimeoutError):
                    async with asyncio.timeout(dice.random() * pause_s):
                        await done.wait()

        async with asyncio.TaskGroup() as tasks:
            for act, pause_s in ((of_bridges, 1.0), (of_the_service, 1.0), (audits, 0.2)):
                tasks.create_task(repeatedly(act, pause_s))
        for wan in self.brokers.wans.values():
            await asyncio.to_thread(wan.restore)

    def reports(self, histories: Sequence[History]) -> Counter[str]:
        """Return how many health reports the store has, by name of the node."""
        rows = self.rows("SELECT n.name, count(*) FROM health h JOIN node n ON n.id = h.node GROUP BY n.name")
        return Counter(dict(rows))

    async def report(self, histories: Sequence[History]) -> bool:
        """Let each node report its health once, in turn. Returns: whether that was prompt, as in life."""
        began = time.monotonic()
        for turn in range(4):
            nodes = [one.nodes[turn] for one in histories if turn < len(one.nodes)]
            before, sent_at = self.reports(histories), 0.0

            def arrived(nodes: Sequence[Node] = nodes, before: Counter[str] = before) -> bool:
                nonlocal sent_at
                now = self.reports(histories)
                missing = [node for node in nodes if now[node.address.node] <= before[node.address.node]]
                if missing and time.monotonic() - sent_at > 2.0:  # QoS 0 over a bridge
                    sent_at = time.monotonic()
                    for node in missing:
                        node.report()
                return not missing

            await eventually(arrived, lambda: "health reports")
        return time.monotonic() - began < PROMPT_S

    async def assert_named(self, histories: Sequence[History]) -> None:
        """Each name that two nodes have is named within two health periods, and both are told of each other."""
        prompt = 0
        while prompt < 2:
            prompt = prompt + 1 if await self.report(histories) else 0
        clones = [one for one in histories if len(one.nodes) > 1]
        query = "SELECT DISTINCT n.name FROM event e JOIN node n ON n.id = e.node WHERE kind = 'name-in-use'"
        named = {name for (name,) in self.rows(query)}
        for one in clones:
            assert one.address.node in named, f"seed {one.seed}: nobody is told of {len(one.nodes)} nodes of one name"
        alone = {one.address.node for one in histories} - {one.address.node for one in clones}
        assert not alone & named, "named, though it has no twin"
        for one in clones:
            sessions = {node.session for node in one.nodes}
            await eventually(
                lambda one=one, sessions=sessions: sum(len(node.told & sessions) >= 2 for node in one.nodes) >= 2,  # type: ignore[misc]
                lambda one=one: (one.seed, [node.told for node in one.nodes]),  # type: ignore[misc]
            )


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    brokers = Brokers()
    running = Region(brokers, tmp_path)
    yield running
    running.process.close()
    brokers.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "count", [pytest.param(40, marks=pytest.mark.long), pytest.param(200, marks=pytest.mark.slow)]
)  # fmt: skip
async def test_random_histories_lose_nothing_and_name_every_clash(region: Region, tmp_path: Path, count: int) -> None:
    await region.start()
    total: Counter[str] = Counter()
    for first in range(0, count, AT_ONCE):
        seeds = range(first, min(first + AT_ONCE, count))
        print(f"seeds {seeds.start} to {seeds.stop - 1}")
        histories = [History(seed, region.brokers, tmp_path) for seed in seeds]
        done = asyncio.Event()
        trouble = asyncio.create_task(region.trouble(random.Random(first), histories, done))

        async def live(one: History) -> None:
            await one.begin()
            for _ in range(30):
                await one.step()

        try:
            await asyncio.gather(*map(live, histories))
        finally:
            done.set()
            await trouble
        await asyncio.gather(*(one.finish() for one in histories))
        region.audit(histories)
        stored = region.stored()
        assert not (wrong := [line for one in histories for line in one.verdict(stored)]), wrong
        await region.assert_named(histories)
        for one in histories:
            total += Counter(
                made=len(one.confirmed), may_be_lost=len(one.may_be_lost), nodes=len(one.nodes), copies=len(one.nodes) > 1
            )  # fmt: skip
            for node in one.nodes:
                await node.stop()
    print(f"{dict(total)}, {dict(region.happened)}, {sum(region.stored().values())} stored")

"""Operations that are cancelled at each of their awaits: nothing is left half done, and the next call mends the rest.

Each attempt is (operation, moment): expected is that what the attempt asserts holds after every cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.cancelling import Cancelling, Moment, at_every_moment, at_every_moment_in_time, cancel_at_every_place
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.bus import Client, ClientOptions
from hedgerow.errors import HedgerowError
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.node.node import Node
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.tasks import tasks
from hedgerow.testing import Mosquitto

Attempt = Callable[[Cancelling], Awaitable[None]]


def links() -> int:
    """Return the number of tasks that keep a link to a broker."""
    return sum(task.get_name() == "link" for task in asyncio.all_tasks())


# The client


class Listener:
    """A client that records its messages."""

    def __init__(self, url: str, **options: Any) -> None:
        self.payloads: list[bytes] = []
        self.client = Client(ClientOptions(url=url, min_backoff_s=0.01, **options), self._receive)

    def _receive(self, messages: list[Any]) -> None:
        for message in messages:
            self.payloads.append(bytes(message.payload))
            self.client.ack(message)

    async def check(self, topic: str) -> None:
        """Check that it still publishes, and receives what it publishes."""
        count = len(self.payloads)
        await self.client.wait_connected(60)
        self.client.publish(topic, b"after", qos=1)
        await until(lambda: b"after" in self.payloads[count:], lambda: "a message after the cancellation")


@contextlib.asynccontextmanager
async def listening(broker: Mosquitto, topic: str) -> AsyncIterator[Listener]:
    listener = Listener(broker.url)
    async with listener.client as client:
        await client.subscribe({topic: 1})
        await client.wait_connected(60)
        yield listener
    assert links() == 0


async def close(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """Closed with a publish outstanding: the link is gone, and the publish has its answer."""
    listener, outcomes = Listener(broker.url), []
    listener.client.resume()
    await listener.client.wait_connected(60)
    listener.client.publish(topic, bytes(200_000), qos=1, done=outcomes.append)

    await cancelling.run(listener.client.close())

    assert links() == 0
    assert len(outcomes) == 1
    assert not listener.client.connected
    await listener.client.close()
    listener.client.resume()
    await listener.client.wait_connected(60)
    await listener.client.close()


async def close_while_connecting(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    client = Listener("mqtt://127.0.0.1:1").client
    client.resume()
    await asyncio.sleep(0)

    await cancelling.run(client.close())

    assert links() == 0


async def renew(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """Renewed with a publish outstanding, which holds the renewal up."""
    async with listening(broker, topic) as listener:
        listener.client.publish(topic, bytes(200_000), qos=1)

        await cancelling.run(listener.client.renew())

        await listener.check(topic)
        await listener.client.renew()
        await listener.check(topic)


async def pause(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.pause())

        assert links() == 0
        listener.client.resume()
        await listener.check(topic)


async def subscribe(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, f"{topic}/other") as listener:
        await cancelling.run(listener.client.subscribe({topic: 1}))

        await listener.client.subscribe({topic: 1})
        await listener.check(topic)


async def unsubscribe(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.unsubscribe([topic]))

        await listener.client.subscribe({topic: 1})
        await listener.check(topic)


async def publish(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """A QoS 1 message is on its way, whether its sender waits or not."""
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.publish_and_wait(topic, b"first"))

        await listener.check(topic)
        assert listener.payloads == [b"first", b"after"]
        assert not listener.client.outstanding


CLIENT = (close, close_while_connecting, renew, pause, subscribe, unsubscribe, publish)


@at_every_moment
@pytest.mark.parametrize("operation", CLIENT, ids=lambda each: f"client-{each.__name__}")
async def test_a_client(operation: Any, moment: Moment, broker: Mosquitto, topic_prefix: str) -> None:
    places = await cancel_at_every_place(lambda cancelling: operation(cancelling, broker, topic_prefix), moment)

    assert places


# The node


@pytest.fixture
def open_pipelines(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """The built pipelines that are not closed."""
    opened: set[Any] = set()
    init, close = LocalPipeline.__init__, LocalPipeline.close

    def opens(self: LocalPipeline, *args: Any) -> None:
        init(self, *args)
        opened.add(self)

    def closes(self: LocalPipeline) -> None:
        close(self)
        opened.remove(self)

    monkeypatch.setattr(LocalPipeline, "__init__", opens)
    monkeypatch.setattr(LocalPipeline, "close", closes)
    return opened


def lanes(names: Iterable[str]) -> int:
    """Return the number of threads that run these pipelines."""
    return sum(thread.name.rpartition("-")[0] in names for thread in threading.enumerate())


NAMES = ("p", "q", "r")


class Running:
    """A node that runs, and what must hold of it whatever was cancelled."""

    def __init__(self, site: Site, node: Node, opened: set[Any]) -> None:
        self.site = site
        self.node = node
        self.opened = opened
        self.sent = 0

    async def check(self) -> None:
        """Check that every pipeline of its configuration runs and answers, and that nothing else is left."""
        runners = self.node.runners
        assert runners.keys() == self.node.config.pipelines.keys()
        assert not self.node.failures
        assert {runner.state for runner in runners.values()} == {"running"}
        assert not self.node._pipelines.reloading.locked()
        assert not self.node._pipelines.committing.locked()
        await until(lambda: len(self.opened) == len(runners), lambda: f"{len(self.opened)} open, {sorted(runners)} run")
        assert {runner.built for runner in runners.values()} == self.opened
        await until(lambda: lanes(NAMES) == 2 * len(runners), lambda: f"{lanes(NAMES)} lanes for {sorted(runners)}")
        assert links() == 1 + 2 * len(runners) + (self.node._outbox.client is not None)
        outbox = self.node._outbox.client
        if outbox is not None:  # what is stored before its link is up is published as late
            await outbox.wait_connected(60)
        for name, runner in runners.items():
            await runner.wait_connected(60)
            self.sent += 1
            await self.site.frame(self.sent, stream=name)
            await until(
                lambda name=name: self.sent in self.site.numbers(name), lambda name=name: f"an answer of {name}"
            )
            tags = {body["result"]["tag"] for body in self.site.results(name) if body["result"]["n"] == self.sent}
            assert tags == {self.node.config.pipelines[name].stages[0].config.get("tag", "")}

    async def busy(self) -> None:
        """Send frames that are in progress when the next operation begins."""
        for name in self.node.runners:
            for _ in range(3):
                self.sent += 1
                await self.site.frame(self.sent, stream=name)


@contextlib.asynccontextmanager
async def running(site: Site, opened: set[Any], pipelines: dict[str, Any], **sections: Any) -> AsyncIterator[Running]:
    async with site.node(pipelines, **sections) as node:
        yield Running(site, node, opened)
    await until(lambda: not opened, lambda: f"{len(opened)} pipelines are open")
    assert lanes(NAMES) == 0
    assert links() == 0


def pipeline(site: Site, name: str, tag: str, **fields: Any) -> dict[str, Any]:
    return site.pipeline({"trial": {"tag": tag, "sleep_s": 0.002}}, subscribe=f"{site.name}/in/{name}", **fields)


def reload_swaps(site: Site) -> list[dict[str, Any]]:
    """Other stages and another subscription: runs on over the same links."""
    other = {**pipeline(site, "p", "new"), "subscribe": [f"{site.name}/in/p", f"{site.name}/in/more"]}
    return [{"p": pipeline(site, "p", "old")}, {"p": other}]


def reload_needs_new_links(site: Site) -> list[dict[str, Any]]:
    return [{"p": pipeline(site, "p", tag, receive_maximum=size)} for tag, size in (("old", 10), ("new", 20))]


def reload_adds_and_removes(site: Site) -> list[dict[str, Any]]:
    return [{name: pipeline(site, name, name) for name in names} for names in (("p", "q"), ("q", "r"))]


def reload_changes_three(site: Site) -> list[dict[str, Any]]:
    """The first of them by a swap, the second by new links."""
    sizes = {"p": (10, 10), "q": (10, 20), "r": (20, 20)}
    return [
        {name: pipeline(site, name, str(turn), receive_maximum=sizes[name][turn]) for name in NAMES} for turn in (0, 1)
    ]


def reload_makes_durable(site: Site) -> list[dict[str, Any]]:
    return [
        {"p": pipeline(site, "p", "old")},
        {"p": pipeline(site, "p", "new", publish={"durable": True})},
    ]


def parsed(site: Site, pipelines: dict[str, Any]) -> Any:
    return configfile.parse(site.yaml(pipelines), site.folder / "node.yaml").pipelines


RELOADS = (reload_swaps, reload_needs_new_links, reload_adds_and_removes, reload_changes_three, reload_makes_durable)


@at_every_moment_in_time
@pytest.mark.parametrize("configs", RELOADS, ids=lambda each: each.__name__.replace("_", "-"))
async def test_a_reload(configs: Any, moment: Moment, site: Site, open_pipelines: set[Any]) -> None:
    """The old configuration runs or the new one, whole; a reload after that succeeds."""
    old, new = configs(site)

    async with running(site, open_pipelines, old) as node:

        async def attempt(cancelling: Cancelling) -> None:
            await node.busy()

            site.write(new)
            await cancelling.run(node.node.reload())

            assert node.node.config.pipelines in (parsed(site, old), parsed(site, new))
            assert node.node.config.pipelines == node.node._live_config.file.pipelines
            await node.check()
            site.write(new)
            await node.node.reload()
            await node.check()
            site.write(old)
            await node.node.reload()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
async def test_a_reload_that_is_refused(moment: Moment, site: Site, open_pipelines: set[Any]) -> None:
    old = {"p": pipeline(site, "p", "old")}
    new = {"p": pipeline(site, "p", "new"), "q": site.pipeline("bad-setup", subscribe=f"{site.name}/in/q")}
    async with running(site, open_pipelines, old) as node:

        async def attempt(cancelling: Cancelling) -> None:
            with contextlib.suppress(HedgerowError):
                site.write(new)
                await cancelling.run(node.node.reload())

            assert node.node.config.pipelines.keys() == old.keys()
            await node.check()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
async def test_an_overlay(moment: Moment, site: Site, open_pipelines: set[Any]) -> None:
    """The overlay that the node has is the one that its pipelines run with: a later reload of the file keeps it."""
    old = {"p": pipeline(site, "p", "old")}
    overlays: tuple[Any, ...] = ({}, {"p": {"stages": [{"trial": {"tag": "laid over"}}], "receive_maximum": 7}})
    async with running(site, open_pipelines, old, remote={"unsigned_pipelines": True}) as node:
        live = node.node._live_config

        async def attempt(cancelling: Cancelling) -> None:
            await node.busy()

            await cancelling.run(live.set_overlay(overlays[1]))

            assert live.effective().pipelines == node.node.config.pipelines
            await node.check()
            await node.node.reload()
            await node.check()
            await live.set_overlay(overlays[1])
            await live.set_overlay(overlays[0])
            await node.check()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
@pytest.mark.parametrize("operation", ["pause", "resume", "renew_links", "stop"])
async def test_a_pipeline(operation: str, moment: Moment, site: Site, open_pipelines: set[Any]) -> None:
    """Resumed, or replaced after it was stopped, it answers again."""
    pipelines = {"p": pipeline(site, "p", "")}
    async with running(site, open_pipelines, pipelines) as node:

        async def attempt(cancelling: Cancelling) -> None:
            runner = node.node.runners["p"]
            if operation == "resume":
                await runner.pause()
            await node.busy()

            await cancelling.run(runner.stop(10) if operation == "stop" else getattr(runner, operation)())

            if operation == "stop":
                site.write(pipelines)
                await node.node.reload()
            await node.node.runners["p"].resume()
            await node.check()

        places = await cancel_at_every_place(attempt, moment)
        assert places or operation == "resume", "to resume takes no waiting"


@at_every_moment_in_time
async def test_the_outbox(moment: Moment, site: Site, tmp_path: Path) -> None:
    """Opened and closed: its file is free, its thread has ended, its link is gone."""
    config = configfile.parse(site.yaml({}), tmp_path / "node.yaml")

    async def attempt(cancelling: Cancelling) -> None:
        outbox = NodeOutbox(config, tmp_path, lambda *_: None)
        await cancelling.run(outbox.open())
        await outbox.open()
        again = Cancelling(cancelling._tried, moment)
        if cancelling.place is None:
            cancelling = again
            await again.run(outbox.close())
        await outbox.close()
        assert "outbox-writer" not in [thread.name for thread in threading.enumerate()]
        assert links() == 0

    assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
async def test_a_run_of_a_node(moment: Moment, site: Site, open_pipelines: set[Any]) -> None:
    """Started, and stopped as soon as it has: whenever it is cancelled, nothing of it is left, and the next run works."""
    file = site.folder / "node.yaml"
    durable = pipeline(site, "q", "", publish={"durable": True})
    file.write_text(site.yaml({"p": pipeline(site, "p", ""), "q": durable}))
    config = configfile.load(file)

    async def attempt(cancelling: Cancelling) -> None:
        node = Node(config, file)

        await cancelling.run(node.run(started=node.stop))

        assert links() == 0
        await until(lambda: not open_pipelines, lambda: f"{len(open_pipelines)} pipelines are open")
        await until(lambda: lanes(NAMES) == 0, lambda: f"{lanes(NAMES)} lanes are left")
        assert not {thread.name for thread in threading.enumerate()} & {"outbox-writer", "probes"}
        assert not tasks._running

    assert await cancel_at_every_place(attempt, moment)
    async with running(site, open_pipelines, {"p": pipeline(site, "p", "after")}) as node:
        await node.check()

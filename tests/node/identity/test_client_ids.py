"""A node's client ids: nobody can guess them, and what waits under the former ones is processed once."""

from __future__ import annotations

import asyncio
import json
import platform
import re
import shutil
from pathlib import Path

import pytest
from trial_site import Site, properties, until

from hedgerow import configfile
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.identity.client_ids import FILE
from hedgerow.bus.packets import session_expiry
from hedgerow.node.node import Node
from hedgerow.node.pipelines import pipelines
from hedgerow.testing import Mosquitto
from hedgerow.topics import Channel
from hedgerow.wire.messages import NAME_NOTICE, Instance, NamedRun, NameNotice, Status

_PLUGINS = [*Path("/usr/lib").glob("**/mosquitto_dynamic_security.so")]
_CONNECTED = re.compile(r"New client connected from \S+ as (hedgerow/\S*) ")


async def test_every_link_has_a_token_that_nothing_published_contains(own_site: Site, mosquitto: Mosquitto) -> None:
    durable = own_site.pipeline(publish={"durable": True})
    async with own_site.node({"p": own_site.pipeline(), "d": durable}):
        token = (own_site.folder / "state" / FILE).read_text().strip()
        await own_site.frame(1)
        await own_site.wait_results(1)
        for command in ("info", "health", "ping"):
            await own_site.command(command)
    name = f"hedgerow/{own_site.address}"
    links = ("", "/p", "/p/results", "/d", "/d/results", "/outbox")
    assert set(_CONNECTED.findall(mosquitto.log)) == {f"{name}{link}/{token}" for link in links}
    assert own_site.received
    for message in own_site.received:
        assert token not in f"{message.topic}{message.payload!r}{message.user}"


async def test_an_upgrade_processes_each_waiting_frame_once(own_site: Site, mosquitto: Mosquitto) -> None:
    """Frames queued for the id of an earlier version, and frames published during the upgrade."""
    mark = own_site.folder / "state" / "sessions" / "p"
    former = ClientOptions(url=mosquitto.url, client_id=f"hedgerow/{own_site.address}/p", session_file=mark)
    async with Client(former, lambda _: None) as client:
        await client.subscribe({f"{own_site.name}/in/+": 1})
        await client.wait_connected(60)
    await own_site.frames(range(100))
    published = 100
    async with own_site.node() as node:
        while mark.exists():
            await own_site.frame(published, stream="abc"[published % 3])
            published += 1
        await own_site.frames(range(published, published + 20))
        published += 20
        await own_site.wait_results(published)
        assert node.runners["p"].sessions_lost == 0
    assert sorted(own_site.numbers()) == list(range(published))
    assert own_site.events("session-left") == own_site.events("session-lost") == []

    await own_site.frames(range(published, published + 5))  # wait in the session of the new id
    async with own_site.node():
        await own_site.wait_results(published + 5)
    assert sorted(own_site.numbers()) == list(range(published + 5))


async def test_another_node_of_the_same_name_is_reported_by_both_until_it_is_gone(own_site: Site) -> None:
    """The broker no longer disconnects one of them, as it does with equal client ids."""
    async with own_site.node() as node:
        assert own_site.events("name-in-use") == []
        twin = Site(own_site.port, own_site.folder / "twin")
        twin.folder.mkdir()
        twin.name, twin.address = own_site.name, own_site.address
        async with twin, twin.node() as other:
            await until(
                lambda: {event["session"] for event in own_site.events("name-in-use")} == {node.session, other.session}
            )
            for one in (node, other):
                (reason,) = one.health().reasons
                assert f"another node runs as {own_site.address}: host {platform.node()}, address 127.0.0.1" in reason
                assert one.health().state == "degraded"
                gauges = {name: value for name, _, _, value in one._announcer.gauges()}
                assert gauges["hedgerow_name_in_use"] == 1
        await until(lambda: node.health().reasons == [])
        # The retained status is not that of the one that stopped.
        await until(
            lambda: (
                (last := own_site.published("status")[-1].body)["state"] == "online" and last["session"] == node.session
            )
        )
    events = {event["session"]: event for event in own_site.events("name-in-use")}
    assert str(own_site.address) in events[node.session]["detail"]["error"]
    assert events[node.session]["detail"]["session"] == other.session
    assert events[other.session]["detail"]["host"] == platform.node()
    count = len(own_site.events("name-in-use"))
    async with own_site.node():
        await asyncio.gather(own_site.command("ping"), own_site.command("health"))
    assert len(own_site.events("name-in-use")) == count, "an earlier run is not another node"


async def test_a_copy_of_a_node_with_its_client_ids_is_reported_by_both(own_site: Site, mosquitto: Mosquitto) -> None:
    """The broker ends the link of one whenever the other connects, so that they never see each other."""
    async with own_site.node():
        await own_site.command("ping")
    twin = Site(own_site.port, own_site.folder / "twin")
    shutil.copytree(own_site.folder / "state", twin.folder / "state")
    twin.name, twin.address = own_site.name, own_site.address
    assert own_site.events("name-in-use") == []
    nodes, running = [], []
    for site in (own_site, twin):
        path = site.folder / "node.yaml"
        path.write_text(site.yaml({"p": site.pipeline()}))
        nodes.append(Node(configfile.load(path), path))
        running.append(asyncio.create_task(nodes[-1].run()))
    sessions = {node.session for node in nodes}
    await until(lambda: {event["session"] for event in own_site.events("name-in-use")} == sessions)
    for node in nodes:
        node.stop()
    await asyncio.gather(*running)
    for event in own_site.events("name-in-use"):
        assert event["detail"]["host"] == platform.node()


async def test_one_late_will_of_the_run_before_is_no_other_node(own_site: Site) -> None:
    async with own_site.node() as node:
        topic = own_site.address.topic(Channel.STATUS)
        late = Status(
            state="offline", session="before", node=str(own_site.address), version="0", reason="connection lost"
        )
        node._announcer.check_name(Message(topic, late.encode(), 1, 0, 0.0), state_is_new=False)
        assert list(node._announcer.twins()) == []
        node._announcer.check_name(Message(topic, late.encode(), 1, 0, 0.0), state_is_new=False)
        assert len(list(node._announcer.twins())) == 1, "it cannot come twice"


async def test_a_node_takes_the_regions_word_for_its_twin_at_another_site(own_site: Site) -> None:
    async with own_site.node() as node:

        async def tell(text: str) -> None:
            before = node._commands.counts["done"]
            topic = f"hedgerow/v1/test/{own_site.name}/node/command/ping"
            await own_site.client.publish(topic, qos=1, properties=properties(user={NAME_NOTICE: text}))
            await own_site.command("ping")  # it has arrived
            assert node._commands.counts["done"] == before + 1 + text.startswith("not")

        def notice(*sessions: str) -> str:
            runs = [NamedRun(session=one, instance=Instance(host=f"host-{one[:3]}", address="192.0.2.9")) for one in sessions]  # fmt: skip
            return NameNotice(runs=runs).encode().decode()

        await tell("not a notice")
        await tell(notice("before", "twin"))
        assert list(node._announcer.twins()) == [], "one of them is an earlier run of this node"
        for _ in range(2):
            await tell(notice(node.session, "twin"))
        (reason,) = node._announcer.twins()
        assert "host host-twi, address 192.0.2.9" in reason
        assert "hedgerow node new-identity" in reason
        (event,) = own_site.events("name-in-use")
        assert event["detail"]["session"] == "twin"
        await tell(notice(node.session))
        (reason,) = node._announcer.twins()
        assert f"host host-{node.session[:3]}" in reason, "a copy of this very process"


async def test_a_node_that_has_lost_its_state_says_that_its_sessions_are_gone(own_site: Site) -> None:
    async with own_site.node():
        await own_site.command("ping")
    assert own_site.events("session-lost") == [], "a new node"
    async with own_site.node():
        await own_site.command("ping")
    assert own_site.events("session-lost") == []
    shutil.rmtree(own_site.folder / "state")
    async with own_site.node():
        event = await own_site.wait_event("session-lost")
    assert "its state folder is empty" in event["detail"]["error"]


@pytest.mark.skipif(not _PLUGINS, reason="Mosquitto's plug-in for dynamic security is not installed")
async def test_a_broker_that_lets_no_node_read_its_status_is_no_problem(tmp_path: Path) -> None:
    """Mosquitto's plug-in refuses subscriptions, which its access lists do not."""
    state = tmp_path / "rights.json"
    rule = {"acltype": "subscribePattern", "topic": "hedgerow/v1/test/+/node/status", "priority": 1, "allow": False}
    roles = [{"rolename": "all", "acls": [rule]}]
    every = {"publishClientSend": True, "publishClientReceive": True, "subscribe": True, "unsubscribe": True}
    groups = [{"groupname": "all", "roles": [{"rolename": "all"}]}]
    rights = {"defaultACLAccess": every, "roles": roles, "groups": groups, "anonymousGroup": "all", "clients": []}
    state.write_text(json.dumps(rights))
    with Mosquitto(config=[f"plugin {_PLUGINS[0]}", f"plugin_opt_config_file {state}"]) as broker:
        async with Site(broker.port, tmp_path) as site, site.node() as node:
            await site.command("ping")
            assert node._link.refused == {}
            assert node.health().state == "ok", node.health().reasons


async def test_a_node_that_crashes_and_loses_its_state_again_and_again_leaves_no_sessions(
    own_site: Site, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start would have ids of its own. Once the state folder has proven to last, frames wait as long as configured."""
    monkeypatch.setattr(pipelines, "_NEW_STATE_EXPIRY_S", 1)
    crashed = set()
    for _ in range(3):
        async with own_site.node() as node:
            source = node.runners["p"]._source
            crashed.add(source.options.client_id)
            assert source._session.link is not None
            source._session.link.abort(ConnectionAbortedError("as a crash"))
            await source._session.leave(b"", "as a crash")
        shutil.rmtree(own_site.folder / "state")
    await until(lambda: all(f"Expiring client {name} due to timeout" in mosquitto.log for name in crashed))

    async with own_site.node() as node:
        await node._pipelines.trust_state()
        await until(lambda: node.runners["p"].connected)
        own = node.runners["p"]._source.options.client_id
    await own_site.frames(range(5))
    async with own_site.node() as node:
        await own_site.wait_results(5)
        assert node.runners["p"]._source.options.crash_expiry_s is None
    assert own_site.numbers() == [0, 1, 2, 3, 4]
    assert f"Expiring client {own} " not in mosquitto.log


async def test_frames_wait_for_a_new_node_that_was_stopped_in_order(own_site: Site) -> None:
    """Only a crash shortens what the broker keeps."""
    async with own_site.node() as node:
        assert node.runners["p"]._source.options.crash_expiry_s == 600
        sent = node.runners["p"]._source._kept()
    assert sent == session_expiry(86_400)
    await own_site.frames(range(3))
    async with own_site.node():
        await own_site.wait_results(3)

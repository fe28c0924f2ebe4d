"""Limits of rendered brokers: derived from the topology, and what a real Mosquitto makes of them."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.topology.conftest import BASE, prepare

from hedgerow.configfile import BadConfigFile
from hedgerow.topology import check
from hedgerow.topology.load import Described, load
from hedgerow.topology.render import render

TOPOLOGY = """\
region: {name: north, broker: r.example, roles: {collector: [collector], viewer: [wall]}}
pipelines: base.yaml
sensors: {camera: plant/1/door, keypad: plant/1/safe}
sites:
  hall: {broker: hall.lan, nodes: [a, b], roles: {viewer: [kim]}}
"""


def described(folder: Path, text: str) -> Described:
    (folder / "base.yaml").write_text(BASE)
    (folder / "topology.yaml").write_text(text)
    return load(folder / "topology.yaml")


def limits(folder: Path, text: str, place: str = "hall") -> dict[str, str]:
    texts = {str(path): content for path, content in render(described(folder, text)).items()}
    found = re.findall(r"^(\w+) (\S+)$", texts[f"{place}/mosquitto.conf"], re.MULTILINE)
    return {name: value for name, value in found if name.startswith(("max_", "memory", "persistent"))}


def test_limits_follow_from_what_connects(tmp_path: Path) -> None:
    """Two nodes of two pipelines: 2 × (2 + 3) links, two sensors, one viewer."""
    one = limits(tmp_path, TOPOLOGY)
    more = limits(tmp_path, TOPOLOGY.replace("[a, b]", "[a, b, c, d]"))
    region = limits(tmp_path, TOPOLOGY, "north")

    assert int(one["max_connections"]) == 4 * (2 * 5 + 2 + 1) + 64
    assert int(more["max_connections"]) == 4 * (4 * 5 + 2 + 1) + 64
    assert int(region["max_connections"]) == 4 * (1 + 2) + 64
    memory, connections = int(one["memory_limit"]), int(one["max_connections"])
    assert memory == 2**30 * 3 // 4 - connections * 28_000
    assert int(one["max_queued_messages"]) == memory // 2 // 94 // connections
    assert int(one["max_queued_bytes"]) == memory * 3 // 4 // 5, "four pipelines and the bridge"
    assert int(region["max_queued_bytes"]) > int(one["max_queued_bytes"]) > int(more["max_queued_bytes"])
    assert (one["max_topic_alias"], one["max_keepalive"], one["persistent_client_expiration"]) == ("0", "1200", "48h")


def test_absent_clients_of_a_site_together_leave_a_quarter_of_the_memory(tmp_path: Path) -> None:
    for nodes in ("[a]", "[a, b, c, d, e, f]"):
        found = limits(tmp_path, TOPOLOGY.replace("[a, b]", nodes))
        queues = 2 * len(nodes.split(",")) + 1
        assert queues * int(found["max_queued_bytes"]) <= int(found["memory_limit"]) * 3 // 4


def test_each_limit_can_be_set(tmp_path: Path) -> None:
    settings = {
        "connections": ("max_connections", 70), "session_hours": ("persistent_client_expiration", 5),
        "keepalive_s": ("max_keepalive", 90), "topic_aliases": ("max_topic_alias", 7), "memory_bytes": ("memory_limit", 2**28),
        "inflight": ("max_inflight_messages", 33), "queue_messages": ("max_queued_messages", 1234),
        "queue_bytes": ("max_queued_bytes", 123_456), "packet_bytes": ("max_packet_size", 65_536),
    }  # fmt: skip
    for name, (directive, value) in settings.items():
        found = limits(tmp_path, f"{TOPOLOGY}limits: {{{name}: {value}}}\n")
        assert found[directive].rstrip("h") == str(value), name


@pytest.mark.parametrize(
    "setting",
    ["connections: 0", "session_hours: 0", "queue_messages: 0", "queue_bytes: 4294967296", "memory_bytes: 1000"],
)
def test_no_limit_can_be_turned_off(tmp_path: Path, setting: str) -> None:
    with pytest.raises(BadConfigFile, match=r"limits\."):
        limits(tmp_path, f"{TOPOLOGY}limits: {{{setting}}}\n")


def test_a_node_that_asks_for_a_longer_session_than_the_broker_keeps_is_a_warning(tmp_path: Path) -> None:
    loaded = described(tmp_path, TOPOLOGY + "limits: {session_hours: 2}\n")

    assert [text for text in check.remarks(loaded.topology, loaded.nodes) if "session" in text] == [
        f"hall/{node} asks the broker to keep its session for 86400 s, but `limits.session_hours` ends it after 2 h"
        for node in "ab"
    ]


def _preload() -> Path:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    return found[0]


def test_a_session_that_should_never_expire_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's clock runs an hour a second; a client of MQTT 5 asks for a session without an end."""
    monkeypatch.setenv("LD_PRELOAD", str(_preload()))
    monkeypatch.setenv("FAKETIME", "+0 x3600")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    text = "region: {name: north, broker: mqtts://localhost:PORT}\nsites: {hall: {broker: mqtts://localhost:PORT, nodes: [a]}}\n"
    running = prepare(tmp_path, f"{text}pipelines: base.yaml\nlimits: {{session_hours: 2}}")
    try:
        running.start("hall")
        for name in ("LD_PRELOAD", "FAKETIME"):
            os.environ.pop(name)
        connect = b"\0\x04MQTT\x05\0\0\x3c\x05\x11" + struct.pack("!I", 0xFFFF_FFFF) + b"\0\x04ever"
        with socket.create_connection(("127.0.0.1", running.windows["hall"])) as link:
            link.sendall(bytes((0x10, len(connect))) + connect)
            assert link.recv(1) == b"\x20"
            link.sendall(b"\xe0\0")
        running.wait_for_log("hall", "Expiring client ever due to timeout.")
    finally:
        running.close()


@pytest.mark.long
async def test_what_waits_for_the_region_survives_an_outage_longer_than_sessions_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge is no absent client. The site's clock runs an hour a second; its broker is restarted before the region is back."""
    preload = str(_preload())
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    text = "region: {name: north, broker: mqtts://localhost:PORT}\nsites: {hall: {broker: mqtts://localhost:PORT, nodes: [a]}}\n"
    running = prepare(tmp_path, f"{text}pipelines: base.yaml\nlimits: {{session_hours: 2}}")
    topics = [f"hedgerow/v1/north/hall/a/event/{number}" for number in range(20)]

    def start_hall(clock: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", preload)
            patch.setenv("FAKETIME", clock)
            running.start("hall")

    try:
        start_hall("+0 x3600")
        async with running.window("hall") as hall:
            for topic in topics[:10]:
                await hall.client.publish(topic, "before", qos=1)
            connect = b"\0\x04MQTT\x05\0\0\x3c\x05\x11" + struct.pack("!I", 0xFFFF_FFFF) + b"\0\x04ever"
            with socket.create_connection(("127.0.0.1", running.windows["hall"])) as link:
                link.sendall(bytes((0x10, len(connect))) + connect)
                assert link.recv(1) == b"\x20"
                link.sendall(b"\xe0\0")
            await asyncio.to_thread(running.wait_for_log, "hall", "Expiring client ever due to timeout.")
            for topic in topics[10:]:
                await hall.client.publish(topic, "during", qos=1)
        running.stop("hall")
        running.start("north")
        async with running.window("north") as north:
            start_hall("+48h x3600")
            await north.until(lambda: len(north.topics("before")) + len(north.topics("during")) == len(topics))
        assert "Expiring client hedgerow-bridge" not in running.log("hall")
    finally:
        running.close()


def test_values_stay_within_what_mosquitto_reads(tmp_path: Path) -> None:
    """Many sites: many connections, and still a queue for the collector. Mosquitto reads most numbers into 31 bits."""
    sites = "".join(f"  s{number}: {{broker: s{number}.lan, nodes: [a]}}\n" for number in range(20))
    text = TOPOLOGY.replace("  hall: {broker: hall.lan, nodes: [a, b], roles: {viewer: [kim]}}\n", sites)
    found: dict[str, Any] = limits(tmp_path, text + "machine: {broker_memory_bytes: 68719476736}\n", "north")
    assert int(found["max_connections"]) == 4 * 22 + 64
    assert all(0 <= int(value.rstrip("h")) < 2**31 for name, value in found.items() if name != "memory_limit")
    assert int(limits(tmp_path, text, "north")["max_queued_messages"]) >= 1000


def test_connections_are_limited_by_open_files_although_mosquitto_counts_wrongly(tmp_path: Path) -> None:
    """2.0.11 counts each connection that ends twice, so that `max_connections` allows ever more."""
    text = "region: {name: north, broker: mqtts://localhost:PORT}\nsites: {hall: {broker: mqtts://localhost:PORT, nodes: [a]}}\n"
    running = prepare(tmp_path, f"{text}pipelines: base.yaml\nlimits: {{connections: 20}}")
    try:
        running.start("hall")
        allowed = Path(f"/proc/{running.pid('hall')}/limits").read_text()
        assert re.search(r"^Max open files\s+104\s+104\s", allowed, re.MULTILINE), allowed
        links = []
        with suppress(OSError):
            while len(links) < 200:
                links.append(socket.create_connection(("127.0.0.1", running.windows["hall"])))
                links[-1].sendall(b"\x10\x10\0\x04MQTT\x05\2\0\x3c\0\0\3" + f"{len(links):03}".encode())
                if not links[-1].recv(1):
                    break
        assert 60 < len(links) < 104
        # The first where Mosquitto has libwrap, whose files cannot be opened then. It may close the link before it logs.
        running.wait_for_log("hall", " denied access by tcpd", "socket count has been exceeded")
        links[0].sendall(b"\xc0\0")  # those that are connected stay
        links[0].settimeout(60)
        answer = b""
        while not answer.endswith(b"\xd0\0"):
            answer += (received := links[0].recv(100))
            assert received
        for link in links:
            link.close()
    finally:
        running.close()


@pytest.mark.parametrize("memory_bytes", [2**26, 2**30])
def test_open_files_are_as_many_as_a_quarter_of_the_memory_holds_connections(tmp_path: Path, memory_bytes: int) -> None:
    text = TOPOLOGY + f"machine: {{broker_memory_bytes: {memory_bytes}}}\n"
    script = {str(path): content for path, content in render(described(tmp_path, text)).items()}["hall/broker.sh"]
    (files,) = re.findall(r"^ulimit -n (\d+) ", script, re.MULTILINE)
    assert int(files) == max(2 * (4 * 13 + 64) + 64, memory_bytes // 4 // 28_000)
